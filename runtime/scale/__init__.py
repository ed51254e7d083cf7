"""Several machines: folders through Ray Data, the API of ``dp-serve`` through Ray Serve."""

__all__: list[str] = []  # its modules are imported by name: one of them is an application that needs Ray
