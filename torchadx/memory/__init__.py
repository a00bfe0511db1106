"""See, move and shrink what autograd saves for backward."""

from torchadx.memory._packed import Residence, residence
from torchadx.memory.budget import Budget, BudgetError
from torchadx.memory.codecs import Codec, register_codec
from torchadx.memory.managed import managed
from torchadx.memory.manager import ActivationManager
from torchadx.memory.policy import Action, Decision, Policy, Rule, TensorMeta
from torchadx.memory.presets import compress, fit, offload
from torchadx.memory.report import Report
from torchadx.memory.stores import DeviceStore, DiskFullError, DiskStore, HostStore, Store

__all__ = [
    "Action",
    "ActivationManager",
    "Budget",
    "BudgetError",
    "Codec",
    "Decision",
    "DeviceStore",
    "DiskFullError",
    "DiskStore",
    "HostStore",
    "Policy",
    "Report",
    "Residence",
    "Rule",
    "Store",
    "TensorMeta",
    "compress",
    "fit",
    "managed",
    "offload",
    "register_codec",
    "residence",
]
