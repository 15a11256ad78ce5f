"""Hands what a run made to the registry: the same gate as everybody's, and `live` only where the report allows it."""

from dataclasses import dataclass
from typing import Any

from adapters import Base, Caller, Kind, Published, Reference, Registry, Version, folder_members, require_adapter_name
from trainer.errors import JobError
from trainer.job import Method
from trainer.plan import Plan
from trainer.run import Run


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a finished run is published."""

    tenant: str
    adapter: str

    @classmethod
    def parse(cls, text: str) -> "Destination":
        """Read `tenant/name`. Raises JobError, or InvalidError for a name that can't be."""
        reference = Reference.parse(text)
        if reference.tenant is None or "@" in text:
            raise JobError(f"--publish {text}: write it as TENANT/NAME, such as acme/support.")
        require_adapter_name(reference.adapter)
        return cls(reference.tenant, reference.adapter)


def require_destination(destination: Destination, registry: Registry, caller: Caller) -> None:
    """Raise NotFoundError unless the tenant exists: known before an hour of training, not after it."""
    registry.tenants.get(caller, destination.tenant)


def publish(plan: Plan, finished: Run, destination: Destination, registry: Registry, caller: Caller) -> Published:
    """Add a version of what the run made; the same bytes again are the same version."""
    return registry.versions.publish(
        caller,
        destination.tenant,
        destination.adapter,
        folder_members(finished.folder.made),
        base=plan.base.fingerprint,
        kind=Kind.LORA if plan.job.method.is_adapter else Kind.FULL,
        parents=_parents(plan.base, destination),
        origin=_origin(plan, finished),
    )


def promote(version: Version, finished: Run, registry: Registry, caller: Caller) -> str | None:
    """Move `live` to the version, unless the run's report speaks against it; then, the reason."""
    refusal = finished.refusal
    if refusal is None:
        registry.aliases.promote(caller, version.tenant, version.adapter, version.number)
    return refusal


def _origin(plan: Plan, finished: Run) -> dict[str, Any]:
    record, job = finished.record, plan.job
    is_quantised = job.method is Method.QLORA
    return {
        "method": plan.job.method.value,
        "variant": plan.job.variant.value if plan.job.method.is_adapter else None,
        "objective": plan.job.objective,
        "base": plan.base.name,
        "run": finished.folder.path.name,
        "run_digest": record.digest,
        "dataset_fingerprint": record.dataset_fingerprint,
        "chat_template_digest": plan.base.chat_template_digest,
        "base_precision": record.precision,
        "quantization": job.quantization if is_quantised else None,
        "double_quantization": job.double_quantization if is_quantised and job.quantization == "nf4" else None,
        "seed": plan.job.seed,
        "steps": record.steps,
        "final_loss": record.final_loss,
        "conversion": record.conversion,
        "report": finished.summary,
    }


def _parents(base: Base, destination: Destination) -> tuple[str, ...]:
    """The model that it was trained on, if that is a version of the same tenant; the origin names any other."""
    is_own = base.version is not None and base.version.startswith(f"{destination.tenant}/")
    return (base.version,) if base.version is not None and is_own else ()
