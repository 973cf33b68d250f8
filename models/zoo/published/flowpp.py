"""Published size of Flow++ (arXiv:1902.00275), counted in chrischute/flowplusplus, a PyTorch port."""

from __future__ import annotations

from tokenloom.models.core.published import Size, Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings

FLOWPP = (
    Size(
        name="CIFAR-10",
        args={},
        parameters=28_784_792,
        excludes="counts the signs of rescaling, which are not trained",
        fixed=("channels.", "checkers.", "noise."),
        image=32,
        classes=0,
        headline="3.08 bits a dimension (CIFAR-10, paper)",
        training=Training(
            settings=TrainSettings(
                epochs=100,
                batch=8,
                optimizer=OptimizerSettings(lr=1e-3, weight_decay=0.0, clip=1.0, warmup=0.0, schedule="constant"),
            ),
            images=50_000,
            departs=("the port's warm-up of 200 epochs and its decay of sizes of weights alone are left out", "batch of one of its GPUs"),
        ),
    ),
)
