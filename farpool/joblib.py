"""Registers "farpool" as a parallel backend of joblib when it is imported.

    import joblib, farpool.joblib

    with joblib.parallel_config(backend="farpool", url="redis://host-a:6379/0"):
        GridSearchCV(...).fit(X, y)

Raises:
    ImportError: joblib is not installed.
"""

try:
    from joblib import register_parallel_backend
except ModuleNotFoundError as error:
    if error.name != "joblib":
        raise
    raise ImportError('joblib is not installed; pip install "farpool[joblib]"') from None

from farpool.producer.joblib_backend import FarpoolBackend

__all__ = ["FarpoolBackend"]

register_parallel_backend("farpool", FarpoolBackend)
