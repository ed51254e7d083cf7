// The plugin library as TensorRT sees it, as far as that goes without a GPU. Built only where NvInfer.h is found.
#include <NvInfer.h>

#include <cstdint>
#include <memory>

#include "check.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count);

using namespace nvinfer1;
using diffplugin::tests::check;

namespace {

IPluginCreatorV3One& the_creator() {
    std::int32_t count = 0;
    IPluginCreatorInterface* const* all = getCreators(count);
    check(count == 1, "one plugin");
    check(std::string(all[0]->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE", "a creator of version 3");
    auto& creator = *static_cast<IPluginCreatorV3One*>(all[0]);
    check(creator.getPluginName() == std::string("GroupNormSilu") && creator.getPluginVersion() == std::string("1") &&
              creator.getPluginNamespace() == std::string(),
          "the function's name, version 1 and no namespace: what the parser looks for");
    return creator;
}

template <class Capability>
Capability& as(IPluginV3& plugin, PluginCapabilityType type) {
    return *static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

DynamicPluginTensorDesc tensor(DataType type, std::initializer_list<std::int64_t> sides,
                               TensorFormat format = TensorFormat::kLINEAR) {
    DynamicPluginTensorDesc made{};
    made.desc.type = type;
    made.desc.format = format;
    made.desc.dims.nbDims = 0;
    for (std::int64_t side : sides) made.desc.dims.d[made.desc.dims.nbDims++] = side;
    made.min = made.opt = made.max = made.desc.dims;
    return made;
}

void group_norm_silu(IPluginCreatorV3One& creator) {
    std::int32_t groups = 32;
    float epsilon = 1e-5f;
    PluginField const said[] = {{"groups", &groups, PluginFieldType::kINT32, 1},
                                {"epsilon", &epsilon, PluginFieldType::kFLOAT32, 1}};
    PluginFieldCollection const fields{2, said};
    std::unique_ptr<IPluginV3> plugin(creator.createPlugin("node", &fields, TensorRTPhase::kBUILD));
    check(plugin != nullptr, "GroupNormSilu is made of its attributes");
    if (plugin == nullptr) return;

    auto& build = as<IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD);
    DynamicPluginTensorDesc half[] = {tensor(DataType::kHALF, {1, 320, 64, 64}), tensor(DataType::kHALF, {320}),
                                      tensor(DataType::kHALF, {320}), tensor(DataType::kHALF, {1, 320, 64, 64})};
    for (std::int32_t at = 0; at < 4; ++at) {
        check(build.supportsFormatCombination(at, half, 3, 1), "all half, tensor " + std::to_string(at));
    }
    half[3].desc.type = DataType::kFLOAT;
    check(!build.supportsFormatCombination(3, half, 3, 1), "y has another type than x");
    half[0].desc.format = TensorFormat::kHWC8;
    check(!build.supportsFormatCombination(0, half, 3, 1), "another layout");
    DataType const types[] = {DataType::kHALF, DataType::kHALF, DataType::kHALF};
    DataType made = DataType::kINT8;
    check(build.getOutputDataTypes(&made, 1, types, 3) == 0 && made == DataType::kHALF, "y has x's type");
    check(build.getWorkspaceSize(half, 3, half + 3, 1) == 32 * 10 * 12, "workspace of 32 groups in 10 slices");

    auto& runtime = as<IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);
    PluginFieldCollection const kept = *runtime.getFieldsToSerialize();
    std::unique_ptr<IPluginV3> again(creator.createPlugin("node", &kept, TensorRTPhase::kRUNTIME));
    check(again != nullptr, "it is made again of what it serialises");
    std::unique_ptr<IPluginV3> copy(runtime.attachToContext(nullptr));
    check(copy != nullptr && copy.get() != plugin.get(), "a context has a copy of its own");

    groups = 0;
    std::unique_ptr<IPluginV3> none(creator.createPlugin("node", &fields, TensorRTPhase::kBUILD));
    check(none == nullptr, "no groups, no plugin");
}

}  // namespace

int main() {
    group_norm_silu(the_creator());
    return diffplugin::tests::verdict("adapter");
}
