"""Golden cases of IRN: case name -> function from the arrays of the case to its `out_*` arrays, by calling wsss_lib."""

import zlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from wsss_lib.nets.backbone import build_backbone
from wsss_lib.nets.irn import IRN
from wsss_lib.refine import affinity, random_walk

Arrays = dict[str, np.ndarray]


def path_index(case: Arrays) -> Arrays:
    out = {}
    for number in sorted(int(key.rsplit("_", 1)[1]) for key in case if key.startswith("in_radius_")):
        radius, size = int(case[f"in_radius_{number}"]), tuple(map(int, case[f"in_size_{number}"]))
        paths, index = affinity.search_paths(radius), affinity.path_index(radius, size)
        lengths = np.array([len(path.points) for path in paths])
        group_lengths, group_counts = np.unique(lengths, return_counts=True)
        result = {
            "radius_floor": radius - 1,
            "destinations": [path.destination for path in paths],
            "path_length": lengths,
            "path_coords": np.concatenate([path.points for path in paths]),
            "src_indices": index.source,
            "dst_indices": index.destination,
            "group_lengths": group_lengths,
            "group_counts": group_counts,
        }
        if radius < 10:
            result["path_indices_flat"] = np.concatenate([points.flatten() for points in index.paths])
        out |= {f"out_{key}_{number}": np.asarray(value) for key, value in result.items()}
    return out


def edge_to_affinity(case: Arrays) -> Arrays:
    result = affinity.edge_to_affinity(torch.from_numpy(case["in_edge"]), int(case["in_radius"]))
    return {"out_affinity": result.numpy()}


def affinity_labels(case: Arrays) -> Arrays:
    labels = affinity.affinity_labels(torch.from_numpy(case["in_label"]), int(case["in_radius"]), num_classes=21)
    return {f"out_{name}": mask.float().numpy() for name, mask in labels._asdict().items()}


def affinity_loss(case: Arrays) -> Arrays:
    radius = int(case["in_radius"])
    edge_logit = torch.from_numpy(case["in_edge_logit"]).requires_grad_()
    displacement = torch.from_numpy(case["in_displacement"]).requires_grad_()
    losses = affinity.affinity_loss(edge_logit, displacement, torch.from_numpy(case["in_label"]), radius, num_classes=21)
    losses.total.backward()
    return {
        "out_affinity": affinity.edge_to_affinity(edge_logit.detach().sigmoid()[:, 0], radius).numpy(),
        "out_pair_displacement": affinity.pair_displacement(displacement.detach(), radius).numpy(),
        "out_disp_target": affinity.displacement_target(radius).numpy(),
        "out_pos_aff_loss": losses.pos.detach().numpy(),
        "out_neg_aff_loss": losses.neg.detach().numpy(),
        "out_dp_fg_loss": losses.dp_fg.detach().numpy(),
        "out_dp_bg_loss": losses.dp_bg.detach().numpy(),
        "out_total": losses.total.detach().numpy(),
        "out_grad_edge_logit": edge_logit.grad.numpy(),
        "out_grad_displacement": displacement.grad.numpy(),
    }


def walk(case: Arrays) -> Arrays:
    cam, edge = torch.from_numpy(case["in_cam"]), torch.from_numpy(case["in_edge"])[0]
    radius, beta, log2_steps = int(case["in_radius"]), float(case["in_beta"]), int(case["in_exp_times"])
    transition = random_walk.affinity_graph(edge, radius, beta).matrix().to_dense()
    transition = transition / transition.sum(0)
    return {
        "out_affinity_dense": random_walk.affinity_graph(edge, radius).matrix().to_dense().numpy(),
        "out_transition_first_row": transition[0].numpy(),
        "out_transition_first_col": transition[:, 0].numpy(),
        "out_walk": random_walk.propagate(cam, edge, radius, beta, log2_steps)[:, None].numpy(),
        "out_walk_r3_b5_e2": random_walk.propagate(cam, edge, radius=3, beta=5, log2_steps=2)[:, None].numpy(),
    }


def sem_seg(case: Arrays) -> Arrays:
    cam, size = torch.from_numpy(case["in_cam"]), tuple(map(int, case["in_size"]))
    edge = torch.from_numpy(case["in_edge"]).reshape(cam.shape[1:])
    result = random_walk.propagate(cam, edge, int(case["in_radius"]), float(case["in_beta"]), int(case["in_exp_times"]))
    label = random_walk.pseudo_mask(result, case["in_keys"], size, float(case["in_bg_threshold"]))
    return {
        "out_walk": result[:, None].numpy(),
        "out_score": random_walk.walk_scores(result, size).numpy(),
        "out_label": label.numpy(),
    }


def recipe_state(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Return the generated weights of the network cases for parameter names (torchvision's, IRN's) and their shapes."""
    state = {}
    for name, shape in shapes.items():
        module, kind = ("." + name).rsplit(".", 2)[1:]
        z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
        if kind == "running_mean":
            value = 0.1 * z
        elif kind == "running_var":
            value = 1 + 0.2 * np.abs(z)
        elif len(shape) > 1:
            value = z * np.sqrt(2 / np.prod(shape[1:]))
        elif kind == "bias":
            value = 0.1 * z
        else:
            value = (1 + 0.1 * z) * (0.3 if module == "bn3" else 1)
        state[name] = torch.from_numpy(np.float32(value))
    return state


def irn_net(case: Arrays) -> Arrays:
    net = IRN(build_backbone("resnet50", output_stride=16, weights="none"))
    ours = {name.removeprefix("backbone."): name for name in net.state_dict() if not name.endswith("num_batches_tracked")}
    weights = recipe_state({canonical: net.state_dict()[name].shape for canonical, name in ours.items()})
    weights["mean_shift.running_mean"] = torch.from_numpy(case["in_running_mean"])
    net.load_state_dict({ours[canonical]: value for canonical, value in weights.items()}, strict=False)

    image, side = torch.from_numpy(case["in_image"])[0], int(case["in_crop"])
    pair = torch.stack([image, image.flip(-1)])
    pair = F.pad(pair, (0, side - image.shape[2], 0, side - image.shape[1]))
    with torch.no_grad():
        _, train_mode = net.train()(pair)
        edge_logit, displacement = net.eval()(pair)
    edge, cut_displacement = net.predict(image, pad_to=side)
    return {
        "out_edge": edge[None].numpy(),
        "out_displacement": cut_displacement.numpy(),
        "out_edge_logit_raw": edge_logit.numpy(),
        "out_displacement_raw": displacement.numpy(),
        "out_displacement_train_mode": train_mode.numpy(),
    }


ADAPTERS: dict[str, Callable[[Arrays], Arrays]] = {
    "irn__path_index": path_index,
    "irn__edge_to_affinity": edge_to_affinity,
    "irn__affinity_labels": affinity_labels,
    "irn__affinity_loss": affinity_loss,
    "irn__random_walk": walk,
    "irn__sem_seg": sem_seg,
    "irn__irn_net": irn_net,
}

# Absolute tolerance of a case, or of one of its arrays ("case/array"); 0 is exact. Others: 1e-5.
TOLERANCE: dict[str, float] = {
    "irn__path_index": 0,
    "irn__edge_to_affinity": 1e-6,
    "irn__affinity_labels": 0,
    "irn__affinity_loss": 1e-6,
    "irn__random_walk": 1e-5,
    "irn__random_walk/out_walk": 5e-5,
    "irn__sem_seg/out_walk": 5e-5,
    "irn__sem_seg/out_score": 1e-4,
    "irn__irn_net": 1e-3,
}

# Label maps that may differ in a few pixels: the share that must be equal.
EQUAL_SHARE: dict[str, float] = {"irn__sem_seg/out_label": 0.995}
