"""SLURM's accounts on this machine: a MariaDB without users, and slurmdbd, which writes into it."""

import shutil
from pathlib import Path

DAEMONS = ("mariadbd", "slurmdbd")

# Of slurmdbd.
CONFIG = """
AuthType=auth/munge
AuthInfo=socket={base}/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports[1]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[0]}
StorageUser=root
StoragePass=any
StorageLoc=accounts
LogFile={base}/slurmdbd.log
PidFile={base}/slurmdbd.pid
"""
# What slurmctld has to know of it.
LINES = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[1]}
AccountingStoragePass={base}/munge.sock
"""
WITHOUT = "AccountingStorageType=accounting_storage/none\n"


def available(path: str) -> bool:
    """Whether what it needs is installed, in one of these folders."""
    plugin = Path("/usr/lib").glob("*/slurm-wlm/accounting_storage_mysql.so")
    return any(plugin) and all(shutil.which(name, path=path) for name in DAEMONS)


def database(base: Path, port: int) -> list[str]:
    """The command of a database below a folder, which anybody on this machine may write into."""
    (base / "database").mkdir()
    return [
        *("mariadbd", "--no-defaults", "--skip-grant-tables", "--user=root"),
        *(f"--datadir={base}/database", f"--socket={base}/database.sock"),
        *("--bind-address=127.0.0.1", f"--port={port}", f"--pid-file={base}/database.pid"),
        *("--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0"),
    ]


def write_config(base: Path, ports: list[int]) -> None:
    """Write slurmdbd's config beside slurm.conf, where it looks."""
    file = base / "slurmdbd.conf"
    file.touch(mode=0o600)  # as it demands
    file.write_text(CONFIG.format(base=base, ports=ports))
