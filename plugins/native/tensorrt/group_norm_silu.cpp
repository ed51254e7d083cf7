// GroupNormSilu as a plugin of standard TensorRT 10 and 11, and the entry points by which TensorRT loads this library:
// IPluginRegistry::loadLibrary, or trtexec --dynamicPlugins.
//
// Name and fields are those of the ONNX function in export/operators.py, version "1", no namespace: where
// OnnxParserFlag::kENABLE_PLUGIN_OVERRIDE is set, the parser takes a loaded plugin in place of a function of its name.
#include <NvInfer.h>

#include <array>
#include <cstring>
#include <new>

#include "../launch.h"

#ifdef _WIN32
#define DP_EXPORT __declspec(dllexport)
#else
#define DP_EXPORT __attribute__((visibility("default")))
#endif

namespace diffplugin {
namespace {

using namespace nvinfer1;

constexpr char const *kName = "GroupNormSilu", *kVersion = "1", *kNamespace = "";
constexpr char const *kGroups = "groups", *kEpsilon = "epsilon";

std::int64_t volume(Dims const& dims, std::int32_t from) {
    std::int64_t values = 1;
    for (std::int32_t i = from; i < dims.nbDims; ++i) {
        values *= dims.d[i];
    }
    return values;
}

bool linear(PluginTensorDesc const& tensor, DataType type) {
    return tensor.format == PluginFormat::kLINEAR && tensor.type == type;
}

// (x [n, c, ...], scale [c], bias [c]) -> y like x, all half or all float
class Plugin final : public IPluginV3,
                     public IPluginV3OneCore,
                     public IPluginV3OneBuild,
                     public IPluginV3OneRuntime {
public:
    Plugin(std::int32_t groups, float epsilon) : groups_(groups), epsilon_(epsilon) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(groups_, epsilon_); }
    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    AsciiChar const* getPluginName() const noexcept override { return kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    std::int32_t getNbOutputs() const noexcept override { return 1; }

    std::int32_t getOutputDataTypes(DataType* outputs, std::int32_t, DataType const* inputs,
                                    std::int32_t count) const noexcept override {
        outputs[0] = inputs[0];
        return count == 3 ? 0 : -1;
    }

    std::int32_t getOutputShapes(DimsExprs const* inputs, std::int32_t count, DimsExprs const*, std::int32_t,
                                 DimsExprs* outputs, std::int32_t, IExprBuilder&) noexcept override {
        outputs[0] = inputs[0];
        return count == 3 && inputs[0].nbDims >= 2 ? 0 : -1;
    }

    bool supportsFormatCombination(std::int32_t at, DynamicPluginTensorDesc const* tensors, std::int32_t,
                                   std::int32_t) noexcept override {
        PluginTensorDesc const& tensor = tensors[at].desc;
        return at == 0 ? linear(tensor, DataType::kHALF) || linear(tensor, DataType::kFLOAT)
                       : linear(tensor, tensors[0].desc.type);
    }

    std::int32_t configurePlugin(DynamicPluginTensorDesc const*, std::int32_t, DynamicPluginTensorDesc const*,
                                 std::int32_t) noexcept override {
        return 0;
    }

    std::int32_t onShapeChange(PluginTensorDesc const*, std::int32_t, PluginTensorDesc const*,
                               std::int32_t) noexcept override {
        return 0;
    }

    std::size_t getWorkspaceSize(DynamicPluginTensorDesc const* inputs, std::int32_t, DynamicPluginTensorDesc const*,
                                 std::int32_t) const noexcept override {
        return workspace_bytes(norm(inputs[0].max));
    }

    std::int32_t enqueue(PluginTensorDesc const* types, PluginTensorDesc const*, void const* const* inputs,
                         void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        auto const value = types[0].type == DataType::kHALF ? Value::kHalf : Value::kFloat;
        return group_norm_silu(norm(types[0].dims), value, inputs[0], inputs[1], inputs[2], outputs[0], workspace,
                               stream);
    }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        fields_ = {{{kGroups, &groups_, PluginFieldType::kINT32, 1},
                    {kEpsilon, &epsilon_, PluginFieldType::kFLOAT32, 1}}};
        collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
        return &collection_;
    }

private:
    GroupNorm norm(Dims const& dims) const {
        return group_norm(dims.d[0], dims.d[1], volume(dims, 2), groups_, epsilon_);
    }

    std::int32_t groups_;
    float epsilon_;
    std::array<PluginField, 2> fields_{};
    PluginFieldCollection collection_{};
};

class Creator final : public IPluginCreatorV3One {
public:
    // nullptr where the node has no groups or no epsilon.
    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const* given, TensorRTPhase) noexcept override {
        std::int32_t groups = 0;
        float epsilon = 0;
        for (std::int32_t i = 0; given != nullptr && i < given->nbFields; ++i) {
            PluginField const& field = given->fields[i];
            if (field.data != nullptr && std::strcmp(field.name, kGroups) == 0) {
                groups = *static_cast<std::int32_t const*>(field.data);
            } else if (field.data != nullptr && std::strcmp(field.name, kEpsilon) == 0) {
                epsilon = *static_cast<float const*>(field.data);
            }
        }
        return groups > 0 && epsilon > 0 ? new (std::nothrow) Plugin(groups, epsilon) : nullptr;
    }

    PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    AsciiChar const* getPluginName() const noexcept override { return kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    std::array<PluginField, 2> fields_{
        {{kGroups, nullptr, PluginFieldType::kINT32, 1}, {kEpsilon, nullptr, PluginFieldType::kFLOAT32, 1}}};
    PluginFieldCollection collection_{static_cast<std::int32_t>(fields_.size()), fields_.data()};
};

}  // namespace
}  // namespace diffplugin

extern "C" {

DP_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}  // nothing here has anything to say

DP_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
    static diffplugin::Creator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}
}
