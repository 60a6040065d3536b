"""YAML rules -> Plan: which backend and device each module gets, and what that costs, before a byte
is loaded. `load_rules` reads a file, `probe_hardware` the machine, `make_plan` joins them.
"""

from hybrid_k2.rules.files import choose_rules, load_rules, shipped_names
from hybrid_k2.rules.hardware import Gpu, Hardware, probe_hardware
from hybrid_k2.rules.plan import Plan, PlanEntry, make_plan
from hybrid_k2.rules.schema import RuleSet
from hybrid_k2.rules.sizes import format_size, parse_size
from hybrid_k2.rules.table import plan_dict, plan_table

__all__ = [
    "Gpu",
    "Hardware",
    "Plan",
    "PlanEntry",
    "RuleSet",
    "choose_rules",
    "format_size",
    "load_rules",
    "make_plan",
    "parse_size",
    "plan_dict",
    "plan_table",
    "probe_hardware",
    "shipped_names",
]
