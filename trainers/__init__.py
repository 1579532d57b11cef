"""One file per method; importing this package imports them all, and so registers them."""

from importlib import import_module
from pkgutil import walk_packages

# Found, not listed: a new method is its file. Modules that register nothing do no harm.
for _module in walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)
