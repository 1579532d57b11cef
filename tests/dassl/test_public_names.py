"""Every import that repositories written for Dassl make."""

import importlib
import subprocess
import sys

import pytest

NAMES = {
    "dassl.config": "get_cfg_default clean_cfg",
    "dassl.data": "DataManager DatasetWrapper",
    "dassl.data.data_manager": "DataManager DatasetWrapper build_data_loader INTERPOLATION_MODES "
    "build_dataset build_sampler build_transform read_image",
    "dassl.data.datasets": "DATASET_REGISTRY build_dataset Datum DatasetBase",
    "dassl.data.datasets.base_dataset": "Datum DatasetBase",
    "dassl.data.datasets.build": "DATASET_REGISTRY build_dataset",
    "dassl.data.samplers": "RandomDomainSampler SeqDomainSampler RandomClassSampler RandomSampler "
    "SequentialSampler build_sampler",
    "dassl.data.transforms": "INTERPOLATION_MODES build_transform",
    "dassl.data.transforms.transforms": "AVAI_CHOICES INTERPOLATION_MODES Random2DTranslation "
    "InstanceNormalization Cutout GaussianNoise build_transform",
    "dassl.data.transforms.autoaugment": "ImageNetPolicy CIFAR10Policy SVHNPolicy",
    "dassl.data.transforms.randaugment": "RandAugment RandAugment2 RandAugmentFixMatch",
    "dassl.engine": "TRAINER_REGISTRY build_trainer TrainerBase SimpleTrainer SimpleNet TrainerX "
    "TrainerXU",
    "dassl.engine.build": "TRAINER_REGISTRY build_trainer",
    "dassl.engine.trainer": "TrainerBase SimpleTrainer SimpleNet TrainerX TrainerXU MetricMeter "
    "AverageMeter SummaryWriter DataManager build_evaluator build_optimizer build_lr_scheduler "
    "build_backbone build_head tolist_if_not count_num_param load_checkpoint save_checkpoint "
    "mkdir_if_missing resume_from_checkpoint load_pretrained_weights",
    "dassl.evaluation": "EVALUATOR_REGISTRY build_evaluator EvaluatorBase Classification",
    "dassl.evaluation.build": "EVALUATOR_REGISTRY build_evaluator",
    "dassl.evaluation.evaluator": "EVALUATOR_REGISTRY EvaluatorBase Classification",
    "dassl.metrics": "compute_accuracy cosine_distance compute_distance_matrix "
    "euclidean_squared_distance",
    "dassl.metrics.accuracy": "compute_accuracy",
    "dassl.metrics.distance": "cosine_distance compute_distance_matrix euclidean_squared_distance",
    "dassl.modeling": "build_backbone build_head build_network BACKBONE_REGISTRY HEAD_REGISTRY "
    "NETWORK_REGISTRY Backbone",
    "dassl.modeling.backbone": "build_backbone BACKBONE_REGISTRY Backbone",
    "dassl.modeling.backbone.build": "build_backbone BACKBONE_REGISTRY",
    "dassl.modeling.backbone.backbone": "Backbone",
    "dassl.modeling.head": "build_head HEAD_REGISTRY",
    "dassl.modeling.head.build": "build_head HEAD_REGISTRY",
    "dassl.modeling.head.mlp": "MLP mlp",
    "dassl.modeling.network": "build_network NETWORK_REGISTRY",
    "dassl.modeling.network.build": "build_network NETWORK_REGISTRY",
    "dassl.modeling.ops": "mixup ReverseGrad create_onehot sharpen_prob",
    "dassl.modeling.ops.utils": "create_onehot sharpen_prob reverse_index shuffle_index "
    "sigmoid_rampup linear_rampup ema_model_update",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.optim.optimizer": "AVAI_OPTIMS build_optimizer RAdam",
    "dassl.optim.lr_scheduler": "AVAI_SCHEDS build_lr_scheduler ConstantWarmupScheduler "
    "LinearWarmupScheduler",
    "dassl.optim.radam": "RAdam PlainRAdam AdamW",
    "dassl.utils": "mkdir_if_missing check_isfile read_json write_json set_random_seed "
    "download_url read_image collect_env_info listdir_nohidden get_most_similar_str_to_a_from_b "
    "check_availability tolist_if_not Logger setup_logger AverageMeter MetricMeter Registry "
    "save_checkpoint load_checkpoint resume_from_checkpoint open_all_layers open_specified_layers "
    "count_num_param load_pretrained_weights init_network_weights",
    "dassl.utils.logger": "Logger setup_logger",
    "dassl.utils.meters": "AverageMeter MetricMeter",
    "dassl.utils.registry": "Registry",
    "dassl.utils.tools": "mkdir_if_missing check_isfile read_json write_json set_random_seed "
    "download_url read_image collect_env_info listdir_nohidden get_most_similar_str_to_a_from_b "
    "check_availability tolist_if_not",
    "dassl.utils.torchtools": "save_checkpoint load_checkpoint resume_from_checkpoint "
    "open_all_layers open_specified_layers count_num_param load_pretrained_weights "
    "init_network_weights",
}


@pytest.mark.parametrize("module", NAMES)
def test_names(module):
    imported = importlib.import_module(module)
    for name in NAMES[module].split():
        assert getattr(imported, name) is not None, name


def test_a_name_is_one_object_wherever_it_comes_from():
    found = {}
    for module, names in NAMES.items():
        for name in names.split():
            found.setdefault(name, []).append(getattr(importlib.import_module(module), name))
    # The image reader of dassl.utils calls the one of dassl.data, which is built on dassl.utils.
    several = {name for name, objects in found.items() if any(o is not objects[0] for o in objects)}
    assert several == {"read_image"}
    with pytest.raises(ImportError, match="cannot import name 'NoSuchName'"):
        from dassl.engine.trainer import NoSuchName  # noqa: F401


def test_every_module_can_be_the_first_one_imported():
    lines = "\n".join(
        f"import sys\nfrom {module} import {names.replace(' ', ', ')}\n"
        "for name in [n for n in sys.modules if n.startswith('dassl')]: del sys.modules[name]"
        for module, names in NAMES.items()
    )
    lines += "\nfrom dassl.engine.trainer import *\nprint(TrainerX.__name__, SimpleNet.__name__)"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout == "TrainerX SimpleNet\n"
