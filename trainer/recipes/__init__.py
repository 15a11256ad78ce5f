"""One flat function a training method; `sft` is the only module that knows TRL."""
