"""From a settings dataclass to a command. Only the ``cli`` modules and the settings import this package."""
