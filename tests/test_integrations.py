"""Training loops of other packages: a run that is stopped and resumed ends bitwise where an uninterrupted one does."""

import pytest
import torch
from peers import module
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from muon_kernels import Muon, param_groups_for
from muon_kernels.compat import build_muon

COUNT = 32
CLIP = 0.1
"""Below the norm of every gradient."""


class Digits(Dataset):
    """Random features and the labels of a fixed linear rule."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(COUNT, 12, generator=generator)
        self.labels = (self.x @ torch.randn(12, 4, generator=generator)).argmax(dim=1)

    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.labels[i]}


class Net(nn.Module):
    """An embedding-free classifier whose forward returns its loss, as Trainer wants it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.LayerNorm(16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.body(x))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def optimizer_and_schedule(model):
    """Of 8 steps, whose gradients must have been clipped."""
    optimizer = Muon(param_groups_for(model, muon={"lr": 0.02}, auxiliary={"lr": 3e-3}))

    def check(*_):
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
        assert 0 < norm <= 1.01 * CLIP

    optimizer.register_step_post_hook(check)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)


def assert_equal(a, b):
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(a.parameters(), Net().parameters(), strict=True))


@pytest.fixture
def _fresh_accelerate():
    """accelerate keeps device and precision for the whole process."""
    state = module("accelerate.state")

    def reset():
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()

    reset()
    yield
    reset()


@pytest.mark.usefixtures("_fresh_accelerate")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(tmp_path, precision):
    """Two batches a step; `save_state` after half of the steps."""
    accelerate = module("accelerate")

    def prepared():
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
        model = Net()
        optimizer, schedule = optimizer_and_schedule(model)
        return accelerator, accelerator.prepare(model, optimizer, schedule, DataLoader(Digits(), batch_size=4))

    def epoch(accelerator, model, optimizer, schedule, loader):
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()

    accelerator, whole = prepared()
    epoch(accelerator, *whole)
    accelerator.save_state(tmp_path)
    epoch(accelerator, *whole)
    accelerator, resumed = prepared()
    accelerator.load_state(tmp_path)
    epoch(accelerator, *resumed)
    assert_equal(whole[0], resumed[0])


@pytest.mark.usefixtures("_fresh_accelerate")
@pytest.mark.parametrize("bf16", [False, True])
def test_transformers_trainer(tmp_path, bf16):
    transformers = module("transformers")

    def trainer():
        model = Net()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=8,
            per_device_train_batch_size=4,
            save_steps=4,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=bf16,
            max_grad_norm=CLIP,
            seed=3,
        )
        optimizers = optimizer_and_schedule(model)
        return transformers.Trainer(model, arguments, train_dataset=Digits(), optimizers=optimizers)

    whole, resumed = trainer(), trainer()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_equal(whole.model, resumed.model)


@pytest.mark.usefixtures("_fresh_accelerate")
def test_transformers_trainer_builds_it(tmp_path):
    """As what Trainer takes for optimizers that need the model: a factory of a function of it."""
    transformers = module("transformers")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no"
    )
    options = {"lr": 0.02, "auxiliary": {"lr": 3e-3}, "compute_dtype": "float32"}
    model = Net()
    trainer = transformers.Trainer(
        model, arguments, train_dataset=Digits(), optimizer_cls_and_kwargs=(lambda: build_muon, options)
    )
    trainer.train()
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), Net().parameters(), strict=True))
    (group,) = [group for group in trainer.optimizer.param_groups if group["use_muon"]]
    assert set(group["params"]) == {model.body[0].weight, model.body[2].weight}  # the head is a matrix too
    assert group["initial_lr"] == 0.02 and group["compute_dtype"] == torch.float32


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_trainer(tmp_path, precision):
    lightning = module("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, batch, _):
            return self.net(**batch)["loss"]

        def configure_optimizers(self):
            optimizer, schedule = optimizer_and_schedule(self.net)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class AMPModule(Module):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            # Under AMP Lightning's own raises for optimizers that unscale gradients, like torch's fused ones.
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def fit(epochs, resume=None):
        model = Module() if precision == "32-true" else AMPModule()
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            precision=precision,
            gradient_clip_val=CLIP,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(Digits(), batch_size=8), ckpt_path=resume)
        return model, trainer

    checkpoint = tmp_path / "epoch.ckpt"
    fit(1)[1].save_checkpoint(checkpoint)  # after an epoch: a DataLoader starts anew
    whole, resumed = fit(2)[0], fit(2, checkpoint)[0]
    assert_equal(whole.net, resumed.net)
