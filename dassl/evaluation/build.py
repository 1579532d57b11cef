"""The registry of evaluators, where Dassl has it."""

from dassl.evaluation.evaluator import EVALUATOR_REGISTRY, build_evaluator

__all__ = ["EVALUATOR_REGISTRY", "build_evaluator"]
