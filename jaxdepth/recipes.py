"""Named sets of flags: rows of the paper's tables, and other recipes.

Each description gives cost and results where they were measured.
"""

import dataclasses
from typing import Any

from jaxdepth.runtime.errors import unknown_choice


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The flags of a configuration that differ from the defaults, and a description."""

    flags: dict[str, Any]
    doc: str

    def command(self, name: str) -> str:
        """Return the command of the recipe, with the files that it needs."""
        words = [f"jaxdepth run --recipe={name}"]
        if "rooms" not in self.flags:
            words.append("--data=nyu_depth_v2_labeled.mat")
        if "init" in self.flags:
            words.append("--weights=FILE")
        return " ".join(words)


# The paper, section 5: Adam, 1e-3, L2 of 1e-4 on every parameter, no augmentation.
# Section 4: raw depth, extremes masked.
_PAPER: dict[str, Any] = {
    "optimizer": "adam",
    "lr": 1e-3,
    "weight_decay": 1e-4,
    "decay": "all",
    "schedule": "constant",
    "augment": "none",
    "depth": "raw",
}
# For `upproj` the paper gives neither loss nor batch size of Tables 3 and 4: `si` and 8
# are choices of this project.
_CNN = _PAPER | {"batch_size": 8, "epochs": 20.0, "train_images": 300}
_TRANSFER = _PAPER | {
    "arch": "upproj",
    "loss": "si",
    "batch_size": 8,
    "epochs": 20.0,
    "train_images": 500,
}
_UNPOOL = _PAPER | {
    "arch": "upproj",
    "loss": "si",
    "batch_size": 8,
    "epochs": 120.0,
    "train_images": 25,
}


def _paper(flags: dict[str, Any], row: str, result: str) -> Recipe:
    return Recipe(flags, f"{row}. Result in the paper: {result} (delta1, RMSE in m).")


_TABLE1_CNN = _paper(
    _CNN | {"arch": "cnn", "loss": "si"},
    "Table 1 CNN, which is also Table 2 scale-invariant: 300 images, 20 epochs",
    "0.195, 1.22",
)

RECIPES: dict[str, Recipe] = {
    "default": Recipe({}, "Adam, 20 epochs, augmentation: for NYU on an accelerator."),
    "demo": Recipe(
        {
            # 60x80 and its training frame, 63x84, both give 2x3 features, so that
            # whole frames in evaluation have the layout of crops in training.
            "size": "60x80",
            "batch_size": 16,
            "steps": 110,
            "rooms": 1500,
            "schedule": "cosine",
            "warmup_steps": 10,
            "lr": 6e-4,
            "augment": "none",
            "eval_every": 37,
            "keep_optimizer": False,
        },
        "Rendered rooms, 3 to 9 minutes on two CPU cores: 0.93 of the RMSE of the "
        "mean depth map (seed 0). The default without data on a CPU.",
    ),
    "table1_cnn_fc": _paper(
        _CNN | {"arch": "cnn_fc", "loss": "mse", "batch_size": 32},
        "Table 1 CNN+FC: mean squared error and batch 32 (section 5.1.1), 300 images, "
        "the paper's number for CNNs (section 5.1.1 says 3,590: --train_images=3590), "
        "20 epochs",
        "0.307, 1.12",
    ),
    "table1_cnn": _TABLE1_CNN,
    "table1_cnn_trans": _paper(
        _CNN | {"arch": "cnn_trans", "loss": "si"},
        "Table 1 CNN+trans: 300 images, 20 epochs",
        "0.143, 1.23",
    ),
    "table2_mse": _paper(
        _CNN | {"arch": "cnn", "loss": "mse"},
        "Table 2 mean squared: 300 images, 20 epochs",
        "0.380, 1.23",
    ),
    "table2_si": _TABLE1_CNN,
    "table2_berhu": _paper(
        _CNN | {"arch": "cnn", "loss": "berhu"},
        "Table 2 berHu: 300 images, 20 epochs",
        "0.352, 0.98",
    ),
    "table3_zero": _paper(
        _UNPOOL | {"unpool": "zero"},
        "Table 3 normal unpooling: 25 images, 120 epochs",
        "0.0537, 6.18",
    ),
    "table3_average": _paper(
        _UNPOOL | {"unpool": "average"},
        "Table 3 average unpooling: 25 images, 120 epochs",
        "0.0557, 6.37",
    ),
    "table4_nyu": _paper(
        _TRANSFER | {"init": "nyu", "layout": "fcrn"},
        "Table 4 pretrained on NYU: needs --weights, 500 images, 20 epochs",
        "0.729, 0.734",
    ),
}
_TABLE4_IMAGENET = _paper(
    _TRANSFER | {"init": "imagenet"},
    "Table 4 random decoder on an ImageNet encoder, which is also Table 1 CNN+Res: "
    "needs --weights, 500 images, 20 epochs",
    "0.634, 1.74",
)
RECIPES["table1_upproj"] = RECIPES["table4_imagenet"] = _TABLE4_IMAGENET

# Laina et al. 2016, from the paper and its authors' answers about their code.
_FCRN: dict[str, Any] = {
    "arch": "upproj",
    "init": "imagenet",
    "loss": "berhu",
    "berhu_scope": "batch",
    "optimizer": "sgd",
    "lr": 0.01,
    "schedule": "thirds",
    "weight_decay": 5e-4,
    "decay": "all",
    "dropout": 0.5,
    "augment": "full",
    "epochs": 20.0,
    "batch_size": 16,
    "depth": "raw",
    "mask_extremes": "off",
}
RECIPES["fcrn"] = Recipe(
    _FCRN,
    "Laina et al. 2016: berHu over the batch, SGD with momentum, 0.01 halved after a "
    "third of 20 epochs and a tenth after two thirds, batch 16, raw depth. Published "
    "result: delta1 0.811, RMSE 0.573 m from 12,000 images of the raw dump. Layout "
    "torchvision, because ImageNet weights have it. Measured on two CPU cores with "
    "--size=57x76 --epochs=12 --split=tune (631 images): 10 minutes, 0.431, 1.242 m "
    "on tune (laina@57x76). Not measured at 228x304.",
)
RECIPES["fcrn_large_batch"] = Recipe(
    _FCRN
    | {
        "batch_size": 256,
        "lr_batch": 16,
        "warmup_epochs": 2.0,
        "decay": "kernels",
        "bn": "local",
        "cache": "device",
    },
    "fcrn on a pod: batch 256 or any other --batch_size, a learning rate in proportion "
    "to it (0.16 at 256) after two epochs of warm-up, no weight decay of biases and "
    "batch normalisation (Goyal et al. 2017), batch statistics per device (at least 16 "
    "images each), bf16, frames cached on the devices. Measured on two CPU cores with "
    "--batch_size=64 --size=57x76 --epochs=12 --split=tune (631 images): 10 minutes, "
    "0.423, 1.278 m on tune (fcrn: 0.431, 1.242). Not measured on a pod.",
)
RECIPES["labeled"] = Recipe(
    {
        "arch": "upproj",
        "init": "imagenet",
        "loss": "si_berhu",
        "optimizer": "adam",
        "lr": 3e-4,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "ema": 0.97,
        "augment": "mild",
        "epochs": 60.0,
        "batch_size": 16,
        "flip_average": "on",
    },
    "The labeled training images only, from an ImageNet encoder; on a CPU with "
    "--size=114x152 --batch_size=8 --epochs=30. Loss chosen on tune after 100 steps of "
    "8 images at 114x152, --augment=flip (230 s of CPU time, seed 0): delta1 0.525, "
    "RMSE 1.188 m, against 0.510, 1.209 m with si; flip averaging then gave 0.541, "
    "1.177 m; a learning rate of 1e-3, a tenth of it for the encoder, and an EMA "
    "changed little. --size=152x202 --batch_size=8 --epochs=22, 45 minutes on two CPU "
    "cores: 0.656, 0.924 m on tune after 1,400 of 1,736 steps; the same network on "
    "report: 0.657, 0.796 m (laina@152x202, pooled, filled ground truth). --epochs=80 "
    "--cache=device on an H100: 0.682, 0.851 m on tune, 0.688, 0.729 m on report "
    "(laina); 60 epochs are as good on tune. Worse on tune: --augment=full with adamw, "
    "1e-3, a tenth of it for the encoder and decay 0.05 (0.662, 0.897 m); scale 0.85 "
    "to 1.35 with more colour and an EMA of 0.99 (0.653, 0.874 m); frozen batch "
    "statistics with dropout 0.5 (0.561, 1.314 m).",
)


def recipe_named(name: str) -> Recipe:
    """Return a recipe. Raises UserError for an unknown name."""
    if name not in RECIPES:
        raise unknown_choice("recipe", name, sorted(RECIPES))
    return RECIPES[name]
