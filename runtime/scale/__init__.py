"""Scale-out on engines of others: folders through Ray Data, the server's API through Ray Serve."""

__all__: list[str] = []  # its modules are imported by name: one of them is an application that needs Ray
