"""Reads the recogniser's scores: the best character at each place, repetitions and blanks left out."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One step of an ensemble."""

    def initialize(self, args):
        """Read the alphabet: 0 is the blank, the last one the space."""
        path = Path(args["model_repository"]) / args["model_version"] / "characters.txt"
        self.characters = ["", *path.read_text(encoding="utf-8").split("\n")]
        if self.characters[-1] == "":
            self.characters.pop()
        self.characters.append(" ")

    def execute(self, requests):
        """Answer each request by itself."""
        responses = []
        for request in requests:
            best = pb_utils.get_input_tensor_by_name(request, "scores").as_numpy().argmax(axis=2)
            texts = [[self.read(line).encode()] for line in best]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("text", np.array(texts, dtype=object))]))
        return responses

    def read(self, line):
        """The text of one line of indices."""
        changes = np.insert(line[1:] != line[:-1], 0, True)
        return "".join(self.characters[index] for index in line[changes])
