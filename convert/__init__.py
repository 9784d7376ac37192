import viavsp_jax  # noqa: F401  which sees to Ctrl-C while a command of this package is loaded
