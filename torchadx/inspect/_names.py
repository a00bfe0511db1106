"""What modules are called in what people read."""


def module_name(module: str | None) -> str:
    """Write a module's path for people: the model's own, and what is outside of modules, in words."""
    return "(outside)" if module is None else module or "(model)"
