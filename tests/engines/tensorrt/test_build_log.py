"""The report that is read from TensorRT's log; the lines are of real builds, shortened."""

from __future__ import annotations

from diffplugin.engines.tensorrt.build_log import LogReader

PARSING = """\
Parsing node: norm [GroupNormalization]
norm [GroupNormalization] inputs: [x -> (1, 320, -1, -1)[HALF]], [w -> (320)[HALF]], [b -> (320)[HALF]],
norm [GroupNormalization] outputs: [normed -> (1, 320, -1, -1)[HALF]],
Parsing node: sigmoid [Sigmoid]
sigmoid [Sigmoid] inputs: [normed -> (1, 320, -1, -1)[HALF]],
sigmoid [Sigmoid] outputs: [gate -> (1, 320, -1, -1)[HALF]],
Parsing node: silu [Mul]
silu [Mul] inputs: [normed -> (1, 320, -1, -1)[HALF]], [gate -> (1, 320, -1, -1)[HALF]],
silu [Mul] outputs: [active -> (1, 320, -1, -1)[HALF]],
Parsing node: conv [Conv]
conv [Conv] inputs: [active -> (1, 320, -1, -1)[HALF]], [k -> (320, 320, 3, 3)[HALF]],
conv [Conv] outputs: [made -> (1, 320, -1, -1)[HALF]],
Parsing node: time sigmoid [Sigmoid]
time sigmoid [Sigmoid] inputs: [made -> (1, 320, -1, -1)[HALF]],
time sigmoid [Sigmoid] outputs: [late -> (1, 320, -1, -1)[HALF]],
Parsing node: softmax [Softmax]
Parsing node: softmax_1 [Softmax]
"""
ENGINE = """\
Total Activation Memory: 21299200 bytes
Total Weights Memory: 2667136 bytes
Layers:
Name: __myl_SiluGnor_myl0_2, LayerType: kgen, Inputs: [ { Name: a }], TacticName: t, StreamId: 0, Metadata: \
[ONNX Layer: norm][ONNX Layer: sigmoid][ONNX Layer: silu]
Name: conv_myl0_3, LayerType: correlation, Inputs: [], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: conv]
Name: __mye9490_myl0_6, LayerType: signal, Inputs: [], TacticName: , StreamId: 0, EventId: 1, Metadata:
Name: _gemm_mha_v2_myl0_16, LayerType: kgen, Inputs: [], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: softmax]

I/O Tensors:
 Name: x, IOMode: Input, DataType: Float, Dimensions: [1,320,64,64], Location: Device, IsShapeInferenceIO: false, \
ProfileInfo: [ { MinShape: [1,320,8,8], OptShape: [1,320,16,16], MaxShape: [1,320,64,64], Format: linear }]
 Name: y, IOMode: Output, DataType: Float, Dimensions: [1,320,64,64], Location: Device, IsShapeInferenceIO: false, \
ProfileInfo: [ { Format: Row major linear FP32 format (kLINEAR) }]
"""


def test_a_report() -> None:
    log = LogReader()
    for line in PARSING.splitlines():
        log.feed(line)
    log.feed(ENGINE)
    assert log.report() == {
        "attention": {"of": 2, "fused": 1, "unfused": ["softmax_1"]},
        "group_norm_silu": {"of": 1, "fused": 1, "unfused": []},
        "group_norms": 1,
        "layers": 3,
        "operators": {"Conv": 1, "GroupNormalization": 1, "Mul": 1, "Sigmoid": 2, "Softmax": 2},
        "activation_bytes": 21299200,
        "weights_bytes": 2667136,
        "tensors": {
            "x": {"mode": "input", "dtype": "Float", "profiles": ["1,320,8,8:1,320,16,16:1,320,64,64"]},
            "y": {"mode": "output", "dtype": "Float", "profiles": []},
        },
    }


def test_a_norm_and_a_silu_in_kernels_of_their_own_are_not_fused() -> None:
    log = LogReader()
    log.feed(PARSING)
    log.feed(ENGINE.replace("[ONNX Layer: sigmoid][ONNX Layer: silu]", ""))
    assert log.report()["group_norm_silu"] == {"of": 1, "fused": 0, "unfused": ["sigmoid"]}


def test_the_first_complaint_counts() -> None:
    log = LogReader()
    assert log.complaint() == "it did not say why"
    log.feed("all is well")
    log.feed("first\n  reason", serious=True)
    log.feed("consequence", serious=True)
    assert log.complaint() == "first reason"
