"""titans-pytorch models as steppable models: its `NeuralMemory` and its `MemoryAsContextTransformer`, streamed."""
