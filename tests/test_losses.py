"""What holds for every registered loss: light imports, refused input, PML's call shape, precision, degenerate batches, training."""
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from dataclasses import is_dataclass

import pytest
import torch

import reid_study.losses
from reid_study.core import InputError
from reid_study.data.market1501 import ATTRIBUTES
from reid_study.distances import DISTANCES, Distance, get_distance
from reid_study.losses.base import COMMON_REFUSALS, FILLED, MetricLoss
from reid_study.networks.heads import BNNeck
from reid_study.testing import check_degenerate
from reid_study.training.recipes import LOSSES, RECIPES

CLASSES, DIM = 4, 8
MODULES = sorted(m.name for m in pkgutil.iter_modules(reid_study.losses.__path__, "reid_study.losses."))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]

@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)                     # these tensors are so small that threads only wait for each other
    yield
    torch.set_num_threads(threads)


# every loss with its defaults, and with the settings that its chapter registers as variants
VARIANTS = {name: (name, {}) for name in LOSSES}
VARIANTS |= {f"{name} {variant}": (name, settings) for name, loss in LOSSES.items() for variant, settings in loss.variants.items()}


def parameters_of(name): return inspect.signature(LOSSES[name].make).parameters


def make(variant, /, **changes):
    "The loss of a variant, with CLASSES identities and embeddings DIM wide, from a seed."
    name, settings = VARIANTS[variant]
    kind = LOSSES[name].make
    filled = {"classes": CLASSES, "dim": DIM, "counts": None}
    settings = {k: v for k, v in filled.items() if k in parameters_of(name)} | settings | changes
    if settings.get("distance") in DISTANCES: settings["distance"] = get_distance(settings["distance"], DIM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = kind(**settings)
        for p in loss.parameters():
            if not p.any(): torch.nn.init.normal_(p)        # a classifier of zeros moves no feature
    return loss


def batch(variant, pids=(0, 0, 0, 1, 1, 2, 3, 3), device="cpu", dtype=torch.float, seed=1):
    "What the loss of a variant is called with: (input with gradient, target). Identities are of unequal size."
    loss, g = LOSSES[VARIANTS[variant][0]], torch.Generator().manual_seed(seed)
    x = torch.randn(len(pids), width(loss.head), generator=g).to(device, dtype).requires_grad_()
    if loss.target == "pid": return x, torch.tensor(pids, dtype=torch.long, device=device)
    return x, torch.randint(-1, 2, (len(pids), len(ATTRIBUTES)), generator=g).to(device)


def width(head):
    "How many numbers of an image a loss reads: a feature's, or a head's output."
    if head is None: return DIM
    arguments = (DIM, CLASSES)[:len(inspect.signature(head).parameters)]
    with torch.random.fork_rng(devices=[]): return head(*arguments)(torch.zeros(1, DIM)).shape[1]


def seeded(call, *args, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return call(*args, **kwargs)


def priced(variant):
    "Whether the distance has a price of its own, which every row pays, whatever the tuples."
    distance = getattr(make(variant), "distance", None)
    return isinstance(distance, Distance) and distance.penalty(torch.ones(1, DIM)) is not None


METRIC = [v for v, (name, _) in VARIANTS.items() if issubclass(LOSSES[name].make, MetricLoss)]
REFERRING = [v for v, (name, _) in VARIANTS.items() if "ref_emb" in inspect.signature(LOSSES[name].make.compute).parameters]


# ---- imports and documentation

def test_losses_load_torch_only():
    code = f"""import importlib, sys
for name in {MODULES}:
    importlib.import_module(name)
    for heavy in ("fastai", "fastcore", "pandas", "matplotlib", "scipy", "sklearn", "IPython"):
        if heavy in sys.modules: sys.exit(f"{{name}} imports {{heavy}}")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_of_the_package_loads_its_module_alone():
    code = """import sys, reid_study.losses
dir(reid_study.losses), reid_study.losses.__all__
assert "torch" not in sys.modules
reid_study.losses.ContrastiveLoss
assert "reid_study.losses.contrastive" in sys.modules and "reid_study.losses.circle" not in sys.modules"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_imports_warn_of_nothing():
    code = "import reid_study.training.learner, reid_study.study.workflow, reid_study.report.html, reid_study.inference.export"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", [*MODULES, "reid_study.distances"])
def test_everything_public_is_documented(module):
    module = importlib.import_module(module)
    defined = [o for n, o in vars(module).items() if not n.startswith("_") and getattr(o, "__module__", None) == module.__name__]
    public = [o for o in defined if inspect.isclass(o) or inspect.isfunction(o)]
    assert public
    bare = [o.__qualname__ for o in public if not (o.__doc__ or "").strip()
            or o.__doc__.startswith(f"{o.__name__}(")]                  # a dataclass writes its signature
    bare += [f"{o.__qualname__}.{method}" for o in public if inspect.isclass(o) and not is_dataclass(o)
             for method in ("__init__", "compute", "forward") if method in vars(o) and not vars(o)[method].__doc__]
    assert not bare, f"without a docstring: {bare}"


# ---- bad input

MISSHAPEN = {
    "input of one dimension": lambda x, y: (x[:, 0], y), "input of three dimensions": lambda x, y: (x[:, :, None], y),
    "input of four dimensions": lambda x, y: (x[:, :, None, None], y),
    "too few targets": lambda x, y: (x, y[1:]), "too many targets": lambda x, y: (x, torch.cat([y, y[:1]])),
    "targets of another dimension": lambda x, y: (x, y[..., None]), "integer input": lambda x, y: (x.detach().long(), y)}

@pytest.mark.parametrize("what", MISSHAPEN)
@pytest.mark.parametrize("name", LOSSES)
def test_a_misshapen_batch_is_refused(name, what):
    with pytest.raises(InputError): make(name)(*MISSHAPEN[what](*batch(name)))


@pytest.mark.parametrize("name", [n for n in LOSSES if "dim" in parameters_of(n)])
def test_embeddings_of_another_width_are_refused(name):
    x, pids = batch(name)
    with pytest.raises(InputError): make(name)(x[:, 1:], pids)


@pytest.mark.parametrize("name", [n for n in LOSSES if "classes" in parameters_of(n)])
@pytest.mark.parametrize("pid", [-1, CLASSES])
def test_a_pid_without_a_class_is_refused(name, pid):
    x, pids = batch(name)
    pids[0] = pid
    with pytest.raises(InputError, match=str(CLASSES - 1)): make(name)(x, pids)


def settings_of(name): return [n for n, p in parameters_of(name).items() if not isinstance(p.default, bool)]    # a switch refuses nothing

@pytest.mark.parametrize("name, setting", [(n, s) for n in LOSSES for s in settings_of(n)])
def test_a_bad_setting_is_refused_by_its_name(name, setting):
    bad = (COMMON_REFUSALS | LOSSES[name].refuses).get(setting)
    assert bad, f"register_loss({name!r}, refuses=...) lacks {setting}: give values that it must refuse"
    for value in bad:
        try: make(name, **{setting: value})
        except InputError as e: assert setting in str(e), f"{setting}={value!r}: the message does not name it: {e}"
        except Exception as e: pytest.fail(f"{setting}={value!r}: {type(e).__name__}, {e}")
        else: pytest.fail(f"{setting}={value!r} is accepted")


@pytest.mark.parametrize("name", LOSSES)
def test_every_number_is_tuned_or_fixed(name):
    loss = LOSSES[name]
    numbers = [s for s in settings_of(name) if isinstance(loss.settings.get(s), (int, float))]
    for setting in numbers:
        assert (setting in loss.search) != (setting in loss.fixed), f"{setting}: give it a range in search, or name it in fixed"
    for setting, bounds in loss.search.items():
        assert not isinstance(bounds, dict) or set(bounds) == set(DISTANCES), f"{setting}: a range for each distance"
        for one in filter(None, bounds.values() if isinstance(bounds, dict) else [bounds]):
            assert len(set(one)) > 1 if isinstance(one, list) else 0 < one[0] < one[1]
    for setting, bounds in loss.search_space().items():
        default = loss.settings[setting]
        assert default in bounds if isinstance(bounds, list) else bounds[0] <= default <= bounds[1]


def test_margins_of_quadruplets_are_ordered():
    for alpha, beta in ((0.2, 0.2), (0.1, 0.2), (0.2, 0)):
        with pytest.raises(InputError, match="alpha > beta > 0"): make("quadruplet", alpha=alpha, beta=beta)


@pytest.mark.parametrize("variant", REFERRING)
def test_bad_references_are_refused(variant):
    loss, (x, pids) = make(variant), batch(variant)
    bad = [dict(ref_emb=x), dict(ref_labels=pids), dict(ref_emb=x, ref_labels=pids[1:]), dict(ref_emb=x[:, 1:], ref_labels=pids),
           dict(ref_emb=x.detach().long(), ref_labels=pids), dict(indices_tuple=(pids, pids))]
    for arguments in bad:
        with pytest.raises(InputError): loss(x, pids, **arguments)


# ---- values and statistics

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_statistics_are_detached_scalars_on_the_device(variant, device):
    loss, (x, target) = make(variant).to(device), batch(variant, device=device)
    for _ in range(2):                                              # the second time a memory is not empty
        with torch.device("meta"):                                  # a tensor made without a device lands there, and fails
            value, statistics = seeded(loss.compute, x, target)
        assert statistics
        assert value.shape == () and value.device.type == device and value.requires_grad and value.isfinite() and value > 0
        for key, s in statistics.items():
            assert isinstance(s, torch.Tensor) and s.shape == () and s.device.type == device and not s.requires_grad and s.isfinite(), key
            if key.startswith(("active", "accuracy", "memory_active")): assert 0 <= s <= 1, key


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_the_value_that_compute_gives(variant):
    x, target = batch(variant)
    assert torch.equal(seeded(make(variant), x, target), seeded(make(variant).compute, x, target)[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_batch_is_left_as_it_was(variant):
    x, target = batch(variant)
    before = x.detach().clone(), target.clone()
    seeded(make(variant), x, target).backward()
    assert torch.equal(x, before[0]) and torch.equal(target, before[1]) and x.grad.any()


# ---- the call shape of pytorch-metric-learning

def learns_from(variant, *args, **kwargs):
    "The rows of the batch, and of the references, that have a gradient."
    x, ref = args[0], kwargs.get("ref_emb")
    value = seeded(make(variant), *args, **kwargs)
    assert value.isfinite() and value > 0
    grads = torch.autograd.grad(value, [x] if ref is None else [x, ref])
    return [g.abs().sum(1).nonzero()[:, 0].tolist() for g in grads]

INDICES = {"triplets": [[0, 1], [1, 0], [3, 4]], "pairs": [[0, 3], [1, 4], [0, 4], [3, 1]]}       # rows 2, 5, 6, 7 are in none

@pytest.mark.parametrize("shape", INDICES)
@pytest.mark.parametrize("variant", [v for v in METRIC if VARIANTS[v][0] != "quadruplet" and not priced(v)])
def test_tuples_say_who_learns(variant, shape):
    x, pids = batch(variant)
    with torch.no_grad(): x[0] += 3*x[3]; x[1] -= 3*x[4]            # far positives and near negatives: every hinge is open
    rows, = learns_from(variant, x, pids, tuple(torch.tensor(i) for i in INDICES[shape]))
    assert rows and set(rows) <= {0, 1, 3, 4}


@pytest.mark.parametrize("variant", ["quadruplet", "quadruplet anchor"])
def test_quadruplets_say_who_learns(variant):
    x, pids = batch(variant)
    quadruplets = tuple(torch.tensor(i) for i in ([0], [1], [3], [6]))
    assert set(learns_from(variant, x, pids, quadruplets)[0]) <= {0, 1, 3, 6}
    assert set(learns_from(variant, x, pids, quadruplets[:3])[0]) & {5, 6, 7}     # the miner added a second negative


@pytest.mark.parametrize("variant", [v for v in REFERRING if v not in ("quadruplet", "quadruplet all")])
def test_references_are_what_the_batch_is_compared_with(variant):
    x, pids = batch(variant)
    ref, ref_pids = batch("contrastive", (3, 0, 1, 0, 2, 1), seed=2)
    rows, columns = learns_from(variant, x, pids, ref_emb=ref, ref_labels=ref_pids)
    assert rows and columns
    value = lambda *args: seeded(make(variant), x, pids, None, *args).item()
    if not random(variant): assert value(ref.flip(0), ref_pids.flip(0)) == pytest.approx(value(ref, ref_pids), rel=1e-5)
    assert value(batch("contrastive", ref_pids.tolist(), seed=3)[0], ref_pids) != pytest.approx(value(ref, ref_pids), rel=1e-5)
    triplets = torch.tensor([0]), torch.tensor([1]), torch.tensor([2])            # references 1 and 2 have pids 0 and 1
    if VARIANTS[variant][0] not in ("quadruplet", "memory") and not priced(variant):
        with torch.no_grad(): ref[1], ref[2] = -x[0], 0.9*x[0] + 0.1*ref[2]
        rows, columns = learns_from(variant, x, pids, triplets, ref_emb=ref, ref_labels=ref_pids)
        assert rows == [0] and set(columns) <= {1, 2} and columns


def random(variant): return variant.split()[-1] in ("random", "distance_weighted")


@pytest.mark.parametrize("variant", ["quadruplet", "quadruplet all"])
def test_pairs_of_two_negatives_need_them_in_one_batch(variant):
    x, pids = batch(variant)
    with pytest.raises(InputError, match="anchor"): make(variant)(x, pids, ref_emb=x, ref_labels=pids)


# ---- precision and degenerate batches

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_changes_nothing(variant, dtype):
    "On half precision embeddings, under autocast, the value is that of the same embeddings in float32."
    (x, target), loss = batch(variant, dtype=dtype), make(variant)
    loss.train()
    with torch.autocast("cpu", dtype=torch.bfloat16): value = seeded(loss, x, target)
    value.backward()
    assert value.dtype == torch.float32 and x.grad.isfinite().all() and x.grad.any()
    assert value.item() == pytest.approx(seeded(make(variant), x.detach().float(), target).item(), rel=1e-5)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if LOSSES[VARIANTS[v][0]].head is None])
def test_degenerate_batches(variant):
    check_degenerate(make(variant), DIM, zero=LOSSES[VARIANTS[variant][0]].needs_pairs and not priced(variant))


@pytest.mark.parametrize("variant, case", [(n, "no image") for n, loss in LOSSES.items() if loss.head] +
                         [(n, "nothing known") for n, loss in LOSSES.items() if loss.target == "attributes"])
def test_nothing_to_classify_is_a_zero_with_a_graph(variant, case):
    x, target = batch(variant, () if case == "no image" else (0, 1, 2))
    if case == "nothing known": target.fill_(-1)
    value, statistics = make(variant).compute(x, target)
    value.backward()
    assert value == 0 and x.grad is not None and not x.grad.any() and all(s.isfinite() for s in statistics.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_large_and_small_inputs_give_finite_gradients(variant):
    for scale in (1e-4, 1e4):
        x, target = batch(variant)
        x = (scale*x).detach().requires_grad_()
        loss = make(variant)
        seeded(loss, x, target).backward()
        for g in [x.grad, *(p.grad for p in loss.parameters() if p.requires_grad)]: assert g is not None and g.isfinite().all()


# ---- recipes

class Toy(torch.nn.Module):
    "A neck and heads on free embeddings: the outputs of an `Embedder` without a backbone."
    def __init__(self, images, heads):
        super().__init__()
        self.before, self.neck = torch.nn.Parameter(torch.randn(images, DIM)), BNNeck(DIM)
        self.heads = torch.nn.ModuleDict({name: make(DIM) for name, make in heads.items()})

    def forward(self):
        after = self.neck(self.before)
        return {"before": self.before, "after": after} | {name: head(after) for name, head in self.heads.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_training_lowers_a_recipes_objective(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads, objective = RECIPES[name].build(CLASSES, dim=DIM)
        network = Toy(4*CLASSES, heads)
        targets = {"pid": torch.arange(CLASSES).repeat_interleave(4), "attributes": torch.randint(0, 2, (4*CLASSES, len(ATTRIBUTES)))}
        weights, terms = [p for p in (*network.parameters(), *objective.parameters()) if p.requires_grad], []
        for _ in range(40):
            total = objective(network(), targets)
            for p, g in zip(weights, torch.autograd.grad(total, weights, allow_unused=True)):     # no term may read the neck
                if g is not None: p.data.sub_(0.05*g.sign())
            assert total.isfinite() and all(v.isfinite() and not v.requires_grad for v in objective.log.values())
            terms.append([total.item(), *(objective.log[t].item() for t in objective.terms)])
    terms = torch.tensor(terms)
    first, final = terms[:5].mean(0), terms[-5:].mean(0)
    assert (final < 0.8*first).all(), dict(zip(("total", *objective.terms), zip(first.tolist(), final.tolist())))


def test_every_loss_is_in_a_recipe():
    assert {t for r in RECIPES.values() for t in r.terms} == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_recipe_fills_in_has_no_default(name):
    assert all(p.default is not inspect.Parameter.empty for n, p in parameters_of(name).items() if n not in FILLED)
