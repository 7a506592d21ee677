"""What the extra `view` installs."""

from importlib.util import find_spec

from probes.errors import RunError


def require_installed(*packages: str) -> None:
    """Raise RunError where one of the packages that the extra `view` brings is missing."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise RunError(f"the live view needs {' and '.join(missing)}: pip install 'tuning-probes[view]'")
