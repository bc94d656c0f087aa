"""The settings of a layer, from which another one like it is made."""

_FUNCTIONS = ("activation", "initializer", "regularizer", "constraint")


def config_of(layer):
    """`layer.get_config()`, in which functions of the user's own are themselves.

    Keras can write down and read only those that are registered; a layer takes any, a lambda too.

    Args:
        layer: A Keras operation.

    Returns:
        A dict for `type(layer).from_config`.

    Raises:
        NotImplementedError: As of `get_config`.
    """
    config = layer.get_config()
    return {
        key: getattr(layer, key, value) if key.endswith(_FUNCTIONS) else value
        for key, value in config.items()
    }
