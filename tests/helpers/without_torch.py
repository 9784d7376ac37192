"""The command as it starts on a machine without PyTorch, a TPU host's core install for one."""

HIDE = "import runpy, sys; sys.modules['torch'] = None; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"


def without_torch(command: list[str]) -> list[str]:
    """`python -m NAME …`, in half the time: libraries import PyTorch where they find it, which trains nothing."""
    python, _, name, *flags = command
    return [python, "-c", HIDE.format(name), *flags]
