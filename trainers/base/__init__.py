"""What methods share: the trainer, the classifier over prompts, options, texts, features."""

from trainers.base.clip_trainer import CLIPTrainer
from trainers.base.prompted_clip import FrozenTextCLIP, PromptedCLIP, template_means

__all__ = ["CLIPTrainer", "FrozenTextCLIP", "PromptedCLIP", "template_means"]
