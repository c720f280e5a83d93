"""A metric of evaluations in one file: how sure a classifier is of the right class.

steering train configs/classification/digits.yaml task.name=examples/parts/metric.py:Sure
"""

from dataclasses import dataclass, replace

from steering.task import scores_of
from steering_tasks.classification import ClassificationOptions, ClassificationTask
from steering_tasks.classification.data import ImageData
from steering_tasks.classification.evaluation import predict


@dataclass
class SureOptions(ClassificationOptions):
    name: str = "examples/parts/metric.py:Sure"


class Sure(ClassificationTask):
    Options = SureOptions

    def evaluate(self, model, device):
        found = super().evaluate(model, device)
        data = ImageData(self.test_part, {"": model.inputs}, 0, "none")
        said = predict(model.module, data, device)
        sure = said.probability.gather(-1, said.label[:, None]).squeeze(-1)  # (n,)
        # One score for each example: means, intervals and pairing are made of it.
        return replace(found, scores={**found.scores, "test/sure": scores_of(sure)})
