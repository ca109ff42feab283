import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdcli.metrics import efficiency
from kdcli.metrics.efficiency import flops, latency, parameters, peak_memory, throughput


class Attention(nn.Module):
    """Self-attention over [B, N, 16] with two heads, as a network may write it."""

    def __init__(self, backend=None):
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.backend = backend

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        if self.backend is None:
            return F.scaled_dot_product_attention(q, k, v)
        with sdpa_kernel(self.backend):
            return F.scaled_dot_product_attention(q, k, v)


def small():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 6 * 6, 10))


def test_parameters_count_shared_once_and_frozen_too():
    first, second = nn.Linear(3, 4), nn.Linear(3, 4)
    second.weight = first.weight
    first.bias.requires_grad_(False)
    assert parameters(nn.Sequential(first, second, nn.BatchNorm1d(4))) == 12 + 4 + 4 + 8


def test_flops_of_layers_are_twice_the_macs_of_one_sample():
    conv, linear = 16 * 6 * 6 * 3 * 3 * 3, 16 * 6 * 6 * 10
    for batch in (1, 5):
        assert flops(small(), torch.zeros(batch, 3, 8, 8)) == 2 * (conv + linear)
    depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    assert flops(depthwise, torch.zeros(1, 8, 5, 5)) == 2 * (8 * 5 * 5 * 9)


@pytest.mark.parametrize("backend", [None, SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_flops_see_attention_whatever_kernel_the_network_asks_for(backend):
    n = 11
    expected = 2 * (n * 16 * 48 + 2 * n * n * 16)  # the projection; queries x keys and weights x values
    assert flops(Attention(backend), torch.zeros(1, n, 16)) == expected


def test_flops_see_the_transformer_fast_path():
    layer, n = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 10
    expected = 2 * (n * 32 * 96 + n * 32 * 32 + 2 * n * n * 32 + 2 * n * 32 * 64)
    assert flops(layer, torch.zeros(1, n, 32)) == expected


@pytest.mark.parametrize("fused", [True, False])
def test_flops_of_a_timm_vit_are_the_analytic_count(fused, monkeypatch):
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", depth=2)
    for block in vit.blocks:
        monkeypatch.setattr(block.attn, "fused_attn", fused)
    n, d = 197, 192
    block = n * d * 3 * d + 2 * n * n * d + n * d * d + 2 * n * d * 4 * d
    analytic = 2 * (196 * 3 * 16 * 16 * d + 2 * block + d * 1000)
    assert flops(vit, torch.zeros(1, 3, 224, 224)) == pytest.approx(analytic, rel=0.01)


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("cannot")


def test_nothing_is_left_modified_even_by_a_failure():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    net[1].eval()  # a frozen BatchNorm
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(6, 4)
    generator = torch.get_rng_state()
    kernels = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    for measure in (flops, peak_memory):
        measure(net, x)
        with pytest.raises(RuntimeError, match="cannot"):
            measure(nn.Sequential(net, Broken()), x)
    latency(net, x, 2, 1)
    throughput(net, x, 2, 1)
    assert [part.training for part in net] == [True, False, True, True]
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.backends.mha.get_fastpath_enabled()
    now = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    assert now == kernels
    assert torch.is_grad_enabled()


class Clocked(nn.Module):
    """Notes the batch and the mode of each call, and takes 2 ms (the third call 20 ms)."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x):
        self.calls.append((len(x), torch.is_inference_mode_enabled(), self.training))
        time.sleep(0.02 if len(self.calls) == 3 else 0.002)
        return x


def test_latency_is_of_one_sample_in_milliseconds_without_the_warmup():
    net = Clocked()
    result = latency(net, torch.zeros(4, 3), repeats=9, warmup=3)
    assert net.calls == [(1, True, False)] * 12
    assert result["repeats"] == 9
    assert 2.0 <= result["p10"] <= result["median"] <= result["p90"]
    assert result["median"] < 15  # the slow third call was part of the warmup


def test_throughput_is_of_the_batch_in_images_per_second():
    net = Clocked()
    result = throughput(net, torch.zeros(4, 3), repeats=5, warmup=0)
    assert net.calls == [(4, True, False)] * 5
    assert result["batch"] == 4
    assert result["p10"] <= result["median"] <= result["p90"] <= 4 / 0.002


def test_the_quantiles_are_those_of_the_measured_times(monkeypatch):
    ticks = iter([0.0, 1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0, 5.0] * 2)
    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: next(ticks))
    times = latency(nn.Identity(), torch.zeros(1, 2), repeats=5, warmup=0)
    assert times == pytest.approx({"median": 3000, "p10": 1400, "p90": 4600, "repeats": 5})
    rates = throughput(nn.Identity(), torch.zeros(6, 2), repeats=5, warmup=0)
    assert rates["median"] == pytest.approx(6 / 3)


def test_the_device_is_waited_for_before_each_reading_of_the_clock(monkeypatch):
    events = []
    monkeypatch.setattr(efficiency, "synchronize", lambda device: events.append(device.type))
    latency(nn.Identity(), torch.zeros(1, 2), repeats=3, warmup=1)
    assert events == ["cpu"] * 8
    waited = []
    monkeypatch.undo()
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    efficiency.synchronize(torch.device("cpu"))
    efficiency.synchronize(torch.device("cuda", 0))
    assert waited == [torch.device("cuda", 0)]


def test_peak_memory_is_weights_input_and_the_two_largest_activations():
    net, x = small(), torch.zeros(4, 3, 8, 8)
    weights, activation = 4 * parameters(net), 4 * 4 * 16 * 6 * 6
    # The input of the ReLU is alive while its output is made; flatten is a view; the last layer adds 4 x 10.
    assert peak_memory(net, x) * 1e6 == pytest.approx(weights + 4 * x.numel() + 2 * activation)


class Keeps(nn.Module):
    """Holds ``n`` activations of 4000 bytes at once, frees them, then makes one small tensor."""

    def __init__(self, n):
        super().__init__()
        self.n = n
        self.register_buffer("table", torch.zeros(1000))

    def forward(self, x):
        total = sum(part.sum() for part in [x + i for i in range(self.n)])
        return total + self.table.view(10, 100)[0]


def test_peak_memory_counts_what_is_alive_at_once_and_no_view_of_weights():
    x = torch.zeros(1, 1000)
    peaks = [peak_memory(Keeps(n), x) * 1e6 for n in (2, 4, 8)]
    assert peaks[1] - peaks[0] == pytest.approx(2 * 4000, abs=100)
    assert peaks[2] - peaks[1] == pytest.approx(4 * 4000, abs=100)
    assert peaks[0] == pytest.approx(4000 + 4000 + 2 * 4000, abs=500)  # table, input, two activations
    assert peak_memory(Keeps(8), x) == peak_memory(Keeps(8), x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_on_cuda_ignores_other_tensors_on_the_device():
    net, x = small().cuda(), torch.zeros(64, 3, 8, 8, device="cuda")
    alone = peak_memory(net, x)
    other = torch.zeros(50_000_000, device="cuda")
    assert peak_memory(net, x) == pytest.approx(alone)
    assert alone * 1e6 >= 4 * parameters(net) + 4 * x.numel() + 64 * 4 * 16 * 6 * 6
    del other


def test_what_cannot_be_measured_is_refused():
    empty = torch.zeros(0, 3)
    for measure in (flops, peak_memory, latency, throughput):
        with pytest.raises(ValueError, match="the example holds no sample"):
            measure(nn.Identity(), empty)
    for measure in (latency, throughput):
        with pytest.raises(ValueError, match="repeats must be at least 1 and warmup at least 0, not 0 and 1"):
            measure(nn.Identity(), torch.zeros(1, 3), 0, 1)
