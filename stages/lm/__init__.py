"""The library under the stages and the app: model, training, quantization, decoding, evaluation."""
