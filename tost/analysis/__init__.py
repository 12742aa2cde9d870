"""What pruning does to a network, and what training makes of it, as plain records; `tost.report` draws them, `tost analyze` both.

The figures of "Progressive Skeletonization" (FORCE, https://arxiv.org/abs/2006.09081) on any network and data set; and of runs,
vanilla and with the tweaks of ToST: the loss around their networks, activations near zero, gradients; of SplitLBI
(https://arxiv.org/abs/2007.02010): the solution path, its density and the filters on it.
"""

from __future__ import annotations

from tost.analysis.activations import Activations, analyze_activations
from tost.analysis.curvature import Curvature, Line, Measure, analyze_curvature
from tost.analysis.filters import Filters, FilterView, Picture, analyze_filters
from tost.analysis.gradient_flow import GradientFlow, analyze_gradient_flow
from tost.analysis.iterations import Iterations, IterationsPoint, analyze_iterations
from tost.analysis.layers import Layers, analyze_layers
from tost.analysis.path_density import PathDensities, RunDensities, analyze_density
from tost.analysis.pswish import PSwishCurves, analyze_pswish
from tost.analysis.recovery import Recovery, analyze_recovery
from tost.analysis.saliency import Saliencies, Saliency, SaliencyPoint, analyze_saliency, saliency
from tost.analysis.setting import Setting
from tost.analysis.solution_path import FilterPath, LayerPath, analyze_path, path_of
from tost.analysis.surface import Surfaces, analyze_surface
from tost.analysis.training_curves import TrainingCurve, TrainingCurves, analyze_curves
from tost.environment import environment

__all__ = [
    "Activations",
    "Curvature",
    "FilterPath",
    "FilterView",
    "Filters",
    "GradientFlow",
    "Iterations",
    "IterationsPoint",
    "LayerPath",
    "Layers",
    "Line",
    "Measure",
    "PSwishCurves",
    "PathDensities",
    "Picture",
    "Recovery",
    "RunDensities",
    "Saliencies",
    "Saliency",
    "SaliencyPoint",
    "Setting",
    "Surfaces",
    "TrainingCurve",
    "TrainingCurves",
    "analyze_activations",
    "analyze_curvature",
    "analyze_curves",
    "analyze_density",
    "analyze_filters",
    "analyze_gradient_flow",
    "analyze_iterations",
    "analyze_layers",
    "analyze_path",
    "analyze_pswish",
    "analyze_recovery",
    "analyze_saliency",
    "analyze_surface",
    "environment",
    "path_of",
    "saliency",
]
