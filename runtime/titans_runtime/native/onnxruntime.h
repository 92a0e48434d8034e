// ONNX Runtime's C interface as far as it is used, and what every operator does with it: takes its inputs, makes its
// outputs, reads its attributes. Included by `operators.cpp` alone.
//
// ONNX Runtime hands over a table of functions that only ever grows at its end, and takes a record of callbacks per
// operator. Both are declared here as far as they are used, by position, so that no header of ONNX Runtime is needed to
// build: the positions are those of its published C interface, version 17, which every release since has kept.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>

#include "allocation.h"

namespace {

constexpr std::uint32_t kInterface = 17, kOperatorRecord = 16;
constexpr int kAny = 0, kFloat = 1, kUint8 = 2, kInt64 = 7, kFloat16 = 10;  // ONNXTensorElementDataType
constexpr int kVariadic = 2;                                                // OrtCustomOpInputOutputCharacteristic
constexpr int kInvalidArgument = 2, kFail = 1;

struct Status;
struct Info;
struct Context;
struct Value;
struct Shape;
struct Domain;
struct Options;

struct Interface {
  const void* functions[275];

  template <class Result, class... Arguments>
  Result call(int position, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(functions[position]))(arguments...);
  }
  Status* status(int code, const char* why) const { return call<Status*>(0, code, why); }
  Status* new_domain(const char* name, Domain** to) const { return call<Status*>(26, name, to); }
  Status* add(Domain* domain, const struct Operator* op) const { return call<Status*>(27, domain, op); }
  Status* add(Options* options, Domain* domain) const { return call<Status*>(28, options, domain); }
  Status* data(Value* value, void** to) const { return call<Status*>(51, value, to); }
  Status* type(const Shape* shape, int* to) const { return call<Status*>(60, shape, to); }
  Status* rank(const Shape* shape, std::size_t* to) const { return call<Status*>(61, shape, to); }
  Status* sizes(const Shape* shape, std::int64_t* to, std::size_t count) const {
    return call<Status*>(62, shape, to, count);
  }
  Status* count(const Shape* shape, std::size_t* to) const { return call<Status*>(64, shape, to); }
  Status* shape(const Value* value, Shape** to) const { return call<Status*>(65, value, to); }
  Status* attribute(const Info* info, const char* name, float* to) const { return call<Status*>(85, info, name, to); }
  Status* attribute(const Info* info, const char* name, std::int64_t* to) const {
    return call<Status*>(86, info, name, to);
  }
  Status* inputs(const Context* context, std::size_t* to) const { return call<Status*>(88, context, to); }
  Status* input(const Context* context, std::size_t index, const Value** to) const {
    return call<Status*>(90, context, index, to);
  }
  Status* output(Context* context, std::size_t index, const std::int64_t* sizes, std::size_t rank, Value** to) const {
    return call<Status*>(91, context, index, sizes, rank, to);
  }
  void release(Status* status) const { call<void>(93, status); }
  void release(Shape* shape) const { call<void>(99, shape); }
  Status* parallel(const Context* context, void (*run)(void*, std::size_t), std::size_t count, void* data) const {
    return call<Status*>(274, context, run, count, std::size_t{0}, data);
  }
};

const Interface*
    interface;  // version 17 of it, which kernels are given none of: they get that of their record's version

struct InterfaceBase {
  const Interface* (*get)(std::uint32_t version);
  const char* (*version)();
};

struct Operator {
  std::uint32_t version;
  void* (*create_v1)(const Operator*, const Interface*, const Info*);
  const char* (*name)(const Operator*);
  const char* (*provider)(const Operator*);
  int (*input_type)(const Operator*, std::size_t);
  std::size_t (*input_count)(const Operator*);
  int (*output_type)(const Operator*, std::size_t);
  std::size_t (*output_count)(const Operator*);
  void (*compute_v1)(void*, Context*);
  void (*destroy)(void*);
  int (*input_kind)(const Operator*, std::size_t);
  int (*output_kind)(const Operator*, std::size_t);
  int (*input_memory)(const Operator*, std::size_t);
  int (*least_inputs)(const Operator*);
  int (*inputs_alike)(const Operator*);
  int (*least_outputs)(const Operator*);
  int (*outputs_alike)(const Operator*);
  Status* (*create)(const Operator*, const Interface*, const Info*, void**);
  Status* (*compute)(void*, Context*);
};

constexpr char kNoMemory[] = "a fused operator was refused the working memory it needs";

// ---------------------------------------------------------------- a call

// Inputs and outputs of one call in order. The first thing that goes wrong is kept, and nothing is done after it.
class Arguments {
 public:
  Arguments(const Interface& ort, Context* context) : ort_(ort), context_(context) {
    keep(ort.inputs(context, &count_));
  }
  ~Arguments() {
    if (failed_) ort_.release(failed_);
  }
  // The next input, which has to have as many numbers as these sizes make.
  template <class Number = float>
  const Number* next(std::initializer_list<std::int64_t> sizes) {
    std::int64_t count = 1;
    for (const std::int64_t size : sizes)
      if (size < 0 || __builtin_mul_overflow(count, size, &count)) refuse("a fused operator's sizes are too large");
    const Value* value = nullptr;
    void* data = nullptr;
    std::size_t found = 0;
    int type = 0;
    Shape* shape = open(&value);
    if (!failed_) keep(ort_.count(shape, &found));
    if (!failed_) keep(ort_.type(shape, &type));
    if (!failed_ && (found != static_cast<std::size_t>(count) || type != type_of(Number{})))
      refuse("an input of a fused operator has another size or type");
    if (!failed_) keep(ort_.data(const_cast<Value*>(value), &data));
    if (shape) ort_.release(shape);
    ++index_;
    return static_cast<const Number*>(data);
  }
  // How many axes the input that `next` will give has, which are at least one and at most `most`, and their sizes.
  std::size_t peek_all(std::int64_t* sizes, std::size_t most) {
    const Value* value = nullptr;
    std::size_t rank = 0;
    Shape* shape = open(&value);
    if (!failed_) keep(ort_.rank(shape, &rank));
    if (shape) ort_.release(shape);
    if (!failed_ && (rank < 1 || rank > most)) refuse("an input of a fused operator has another rank");
    if (!failed_) peek(sizes, rank);
    return failed_ ? 0 : rank;
  }
  // The sizes of the input that `next` will give, which has to have `rank` axes.
  void peek(std::int64_t* sizes, std::size_t rank) {
    const Value* value = nullptr;
    std::size_t found = 0;
    Shape* shape = open(&value);
    if (!failed_) keep(ort_.rank(shape, &found));
    if (!failed_ && found != rank) refuse("an input of a fused operator has another rank");
    if (!failed_) keep(ort_.sizes(shape, sizes, rank));
    for (std::size_t axis = 0; !failed_ && axis < rank; ++axis)
      if (sizes[axis] < 1) refuse("an input of a fused operator is empty");
    if (shape) ort_.release(shape);
  }
  float* make(std::initializer_list<std::int64_t> sizes) { return make(sizes.begin(), sizes.size()); }
  float* make(const std::int64_t* sizes, std::size_t rank) {
    Value* value = nullptr;
    void* data = nullptr;
    if (!failed_) keep(ort_.output(context_, made_++, sizes, rank, &value));
    if (!failed_ && !value) refuse("an output of a fused operator is left out");
    if (!failed_) keep(ort_.data(value, &data));
    return static_cast<float*>(data);
  }
  void refuse(const char* why) { keep(ort_.status(kInvalidArgument, why)); }
  // Calls `run` for each index, which says whether it had the memory it needs.
  template <class Run>
  void over(std::ptrdiff_t count, const Run& run) {
    if (failed_) return;
    struct Work {
      const Run& run;
      std::atomic<bool> enough;
    } work{run, {true}};
    const auto each = [](void* data, std::size_t index) {
      Work& work = *static_cast<Work*>(data);
      if (!work.run(index)) work.enough = false;
    };
    if (count == 1)
      each(&work, 0);
    else
      keep(ort_.parallel(context_, each, count, &work));
    if (!work.enough) keep(ort_.status(kFail, kNoMemory));
  }
  bool ok() const { return !failed_; }
  Status* finish() {
    Status* failed = failed_;
    failed_ = nullptr;
    return failed;
  }

 private:
  static constexpr int type_of(float) { return kFloat; }
  static constexpr int type_of(std::int64_t) { return kInt64; }
  static constexpr int type_of(std::uint8_t) { return kUint8; }
  static constexpr int type_of(std::uint16_t) { return kFloat16; }
  Shape* open(const Value** value) {
    Shape* shape = nullptr;
    if (!failed_ && index_ >= count_) refuse("a fused operator has too few inputs");
    if (!failed_) keep(ort_.input(context_, index_, value));
    if (!failed_ && !*value) refuse("an input of a fused operator is left out");
    if (!failed_) keep(ort_.shape(*value, &shape));
    return shape;
  }
  void keep(Status* status) {
    if (!status) return;
    if (failed_)
      ort_.release(status);
    else
      failed_ = status;
  }
  const Interface& ort_;
  Context* context_;
  Status* failed_ = nullptr;
  std::size_t count_ = 0, index_ = 0, made_ = 0;
};

// ---------------------------------------------------------------- attributes

constexpr std::int64_t kLargest = 1 << 20;  // of any attribute: products of a few of them do not overflow

// A kernel with its attributes read from the node.
template <class Kernel>
class Making {
 public:
  Making(const Interface* ort, const Info* info) : ort_(ort), info_(info) {
    kernel = static_cast<Kernel*>(allocate(64, sizeof(Kernel)));
    if (kernel)
      *kernel = Kernel{interface};
    else
      refuse(kNoMemory);
  }
  ~Making() {
    if (failed_) std::free(kernel);
  }
  template <class Number>
  void attribute(const char* name, Number* to) {
    if (!failed_) failed_ = ort_->attribute(info_, name, to);
  }
  std::int64_t number(const char* name) {
    std::int64_t value = 0;
    attribute(name, &value);
    return within(value);
  }
  // The same of an attribute that a node may leave out.
  std::int64_t number(const char* name, std::int64_t otherwise) {
    std::int64_t value = otherwise;
    Status* absent = failed_ ? nullptr : ort_->attribute(info_, name, &value);
    if (absent) ort_->release(absent);
    return absent ? otherwise : within(value);
  }
  void refuse(const char* why) {
    if (!failed_) failed_ = ort_->status(kInvalidArgument, why);
  }
  bool ok() const { return !failed_; }
  Status* finish(void** to) {
    if (!failed_) *to = kernel;
    return failed_;
  }
  Kernel* kernel;

 private:
  std::int64_t within(std::int64_t value) {
    if (value < -1 || value > kLargest) refuse("a fused operator has an attribute out of all bounds");
    return value;
  }
  const Interface* ort_;
  const Info* info_;
  Status* failed_ = nullptr;
};

}  // namespace
