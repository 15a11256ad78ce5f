"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# Machines are shared: how long an example takes says nothing here. A failure prints the line that repeats it.
# The parent is hypothesis' own choice: with CI set, the same examples in every run.
settings.register_profile(
    "lorikeet",
    parent=settings(),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("lorikeet")
