"""The backward of one block in training; :mod:`mobilenet_ext.training.block` is the forward."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mobilenet_ext.backends import aten
from mobilenet_ext.memory_format import channels_last
from mobilenet_ext.training import block, passes
from mobilenet_ext.training.block import Block, Stats, is_pointwise
from mobilenet_ext.training.passes import image_of, matrix
from mobilenet_ext.training.scratch import empty_image, scratch, scratch_image

# Where somebody collects the masks that backwards take, in their order: (block, role, mask of some images).
recorder: list[tuple[Block, str, Tensor]] | None = None


@dataclass(frozen=True)
class Needs:
    """What is asked for: the input's gradient, and the weight's of each role."""

    x: bool
    weights: Mapping[str, bool]


@dataclass
class Grads:
    x: Tensor | None = None
    stages: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class Backward:
    """The backward of ``run`` for ``g``, the gradient of y.

    ``v`` and ``p`` are those that :meth:`Block.forward` gave, None where all is made again; ``stats`` are the
    statistics of the stages with batch ones.
    """

    def __init__(
        self, run: Block, g: Tensor, v: Tensor | None, p: Tensor | None, stats: Sequence[Stats], needs: Needs
    ) -> None:
        self.run_, self.g, self.v, self.p, self.needs = run, channels_last(g), v, p, needs
        remaining = iter(stats)
        for stage in run.stages.values():
            stage.close(next(remaining) if stage.batch else None)
        self.grads = Grads(stages={role: {} for role in run.stages})
        self.sums: dict[str, Tensor] = {}
        self.products: dict[str, Tensor] = {}  # of the weights, summed over parts
        self.count = run.n * run.out_size[0] * run.out_size[1]

    def run(self) -> Grads:
        run = self.run_
        if run.dw is None:
            self._single()
        elif any(stage.batch for stage in run.stages.values()):
            self._batch()
        else:
            self._frozen()
        for role, stage in run.stages.items():
            if role in self.sums:
                self.grads.stages[role].update(stage.done.gradients(self.sums[role]))
        if run.block.residual and self.grads.x is not None:
            self.grads.x += self.g
        return self.grads

    def _record(self, role: str, bare: Tensor) -> None:
        """The mask of the activation behind ``bare``, an image, exactly as the kernels take it."""
        norm = self.run_.stages[role].done
        if recorder is None or norm.spec.activation == "none":
            return
        rows = matrix(bare)
        ones = torch.ones_like(norm.center)
        plain = passes.Coefficients(ones, None, None, norm.center)
        mask = passes.gradient(torch.ones_like(rows), rows, norm.affine, plain, torch.empty_like(rows)) != 0
        recorder.append((self.run_, role, image_of(mask, bare.shape[0], *bare.shape[2:])))

    def _add(self, store: dict[str, Tensor], role: str, value: Tensor) -> None:
        store[role] = store[role] + value if role in store else value

    def _add_product(self, role: str, wide: Tensor, narrow: Tensor, center: Tensor | None = None) -> None:
        """wide^T (narrow - center) into the product of ``role``."""
        if self.needs.weights[role]:
            self.products[role] = passes.weight_product(wide, narrow, center, self.products.get(role))

    def _project_product(self) -> Tensor | None:
        """The project weight's gradient (out, hidden) from its product, whose wide side is the hidden one."""
        product = self.products.get("project")
        return None if product is None else product.t()

    # A lone convolution.
    def _single(self) -> None:
        run = self.run_
        stage = run.last
        u = matrix(self.p if self.p is not None else run.expanded(slice(0, run.n)))
        self._record("expand", image_of(u, run.n, *run.out_size))
        g = matrix(self.g)
        self.sums["expand"] = passes.reduce(g, u, stage.done.affine, stage.done.center)
        k = stage.done.coefficients(self.sums["expand"], self.count)
        du = passes.gradient(g, u, stage.done.affine, k, scratch("masked", g, *g.shape))
        self._expand_gradient(image_of(du, run.n, *run.out_size))

    def _expand_gradient(self, du: Tensor) -> None:
        """From the gradient of the bare expand convolution of the whole batch to those of weight and input."""
        run = self.run_
        assert run.expand is not None
        spec = run.expand.spec
        if is_pointwise(spec):
            self._add_product("expand", matrix(du), matrix(run.x))
            if "expand" in self.products:
                self.grads.stages["expand"]["weight"] = self.products["expand"]
            if self.needs.x:
                rows = run.x.new_empty(matrix(run.x).shape)
                passes.product(matrix(du), run.expand.weight, False, rows)
                self.grads.x = image_of(rows, run.n, run.height, run.width)
            return
        if self.needs.weights["expand"]:
            self.grads.stages["expand"]["weight"] = self._dense_weight_gradient(du)
        if not self.needs.x:
            return
        top, bottom, left, right = aten.paddings(spec, run.height, run.width)
        x = torch.nn.functional.pad(run.x, (left, right, top, bottom)) if (top, left) != (bottom, right) else run.x
        padding = (0, 0) if x is not run.x else (top, left)
        dx, _, _ = torch.ops.aten.convolution_backward(
            du, x, run.expand.weight, None, spec.stride, padding, spec.dilation, False, (0, 0), 1, (True, False, False)
        )
        if x is not run.x:
            dx = dx[:, :, top : top + run.height, left : left + run.width]
        self.grads.x = channels_last(dx)

    def _dense_weight_gradient(self, du: Tensor) -> Tensor:
        """As a product with the image's patches, some images at a time: PyTorch's own depends on the thread count."""
        run = self.run_
        assert run.expand is not None
        spec = run.expand.spec
        kh, kw = spec.kernel
        channels, pixels = spec.in_channels, run.hidden_size[0] * run.hidden_size[1]
        image = pixels * kh * kw * channels * run.x.element_size()
        count = max(1, block.CHUNK_BYTES // max(1, image))
        total: Tensor | None = None
        for first in range(0, run.n, count):
            part = slice(first, first + count)
            rows = passes.patches(run.x[part], spec, aten.paddings(spec, run.height, run.width), run.hidden_size)
            total = passes.weight_product(matrix(du[part]), rows, None, total)
        if total is None:
            return torch.zeros_like(run.expand.weight)
        return total.view(-1, kh, kw, channels).permute(0, 3, 1, 2).contiguous()

    # Statistics of the batch: sums over all of it stand between the stages.
    def _batch(self) -> None:
        run, g = self.run_, matrix(self.g)
        assert run.dw is not None
        assert self.v is not None
        v, dw, da = self.v, run.dw.done, self.g
        self._record("depthwise", v)
        if run.project is not None:
            assert self.p is not None
            self._record("project", self.p)
            p, norm = matrix(self.p), run.project.done
            self.sums["project"] = passes.reduce(g, p, norm.affine, norm.center)
            k = norm.coefficients(self.sums["project"], self.count)
            dp = passes.gradient(g, p, norm.affine, k, scratch("projected", p, *p.shape))
            rows = scratch("activated gradient", p, p.shape[0], run.project.spec.in_channels)
            for part in run.chunks():
                some = matrix(v[part])
                self._add_product("project", run.activated(v[part]), run._rows(dp, part))
                out = run._rows(rows, part)
                passes.product(run._rows(dp, part), run.project.weight, False, out)
                self._add(self.sums, "depthwise", passes.reduce(out, some, dw.affine, dw.center))
            product = self._project_product()
            if product is not None:
                self.grads.stages["project"]["weight"] = product
            da = image_of(rows, run.n, *run.out_size)
        else:
            self.sums["depthwise"] = passes.reduce(g, matrix(v), dw.affine, dw.center)
        coefficients = dw.coefficients(self.sums["depthwise"], self.count)
        if run.expand is None:
            self._depthwise(da, v, coefficients, run.x)
        else:
            parts = ((part, run.expanded(part), da[part], v[part]) for part in run.chunks())
            self._hidden(parts, coefficients)

    # Every BatchNorm frozen: each part of the batch goes through the whole block at once.
    def _frozen(self) -> None:
        run = self.run_
        assert run.dw is not None
        dw = run.dw.done
        coefficients = dw.coefficients(torch.zeros(0), self.count)

        def parts() -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
            for part in run.chunks():
                u = run.x[part] if run.expand is None else run.expanded(part)
                v, da = scratch_image("convolved", u, u.shape[0], u.shape[1], *run.out_size), self.g[part]
                run.convolve(u, False, v)
                self._record("depthwise", v)
                if run.project is not None:
                    da = self._project_frozen(da, v)
                self._add(self.sums, "depthwise", passes.reduce(matrix(da), matrix(v), dw.affine, dw.center))
                yield part, u, da, v

        if run.expand is None:
            ((_, u, da, v),) = parts()
            self._depthwise(da, v, coefficients, u)
        else:
            self._hidden(parts(), coefficients)
        product = self._project_product()
        if run.project is not None and product is not None:
            if run.project.spec.activation == "none":
                self.sums["project"] = self._project_sums(product)
                product = product * run.project.done.affine.scale[:, None]
            self.grads.stages["project"]["weight"] = product

    @functools.cached_property
    def _scaled(self) -> Tensor:
        """The project weight with its BatchNorm's scale."""
        assert self.run_.project is not None
        return self.run_.project.weight * self.run_.project.done.affine.scale[:, None]

    def _project_sums(self, product: Tensor) -> Tensor:
        """Those of g and g * (p - center) from ``product``, g^T a: with p = W a the sum of g * p is one over W."""
        run = self.run_
        assert run.project is not None
        mean, _ = passes.moments(matrix(self.g))
        total = mean * self.count
        along = (product.double() * run.project.weight.double()).sum(1)
        return torch.stack([total, along - run.project.done.center.double() * total])

    def _project_frozen(self, g: Tensor, v: Tensor) -> Tensor:
        """The gradient that arrives at the activated depthwise result of some images."""
        run = self.run_
        assert run.project is not None
        assert run.dw is not None
        norm, rows = run.project.done, matrix(g)
        a = run.activated(v)
        out = scratch("activated gradient", a, *a.shape)
        if norm.spec.activation == "none" and self.needs.weights["project"]:
            # The scale goes into the weights, and _project_sums makes the sums of the whole batch.
            self._add_product("project", a, rows)
            return image_of(passes.product(rows, self._scaled, False, out), g.shape[0], *run.out_size)
        p = passes.product(a, run.project.weight, True, scratch("project", a, a.shape[0], norm.spec.out_channels))
        self._record("project", image_of(p, g.shape[0], *run.out_size))
        self._add(self.sums, "project", passes.reduce(rows, p, norm.affine, norm.center))
        k = norm.coefficients(self.sums["project"], self.count)
        rows = passes.gradient(rows, p, norm.affine, k, scratch("projected", p, *p.shape))
        self._add_product("project", a, rows)
        return image_of(passes.product(rows, run.project.weight, False, out), g.shape[0], *run.out_size)

    def _depthwise(self, da: Tensor, v: Tensor, k: passes.Coefficients, x: Tensor) -> None:
        """The depthwise stage of a block that begins with it, on the whole batch."""
        run = self.run_
        assert run.dw is not None
        assert run.geometry is not None
        dx = empty_image(x, *x.shape) if self.needs.x else None
        needed = self.needs.weights["depthwise"]
        weight, _ = passes.depthwise_gradient(
            da, passes.Behind(v, run.dw.done.affine, k), x, run.dw.weight, None, None, run.geometry, needed, dx
        )
        self.grads.x = dx
        if self.needs.weights["depthwise"]:
            self.grads.stages["depthwise"]["weight"] = weight

    def _hidden(self, parts: Iterator[tuple[slice, Tensor, Tensor, Tensor]], k: passes.Coefficients) -> None:
        """Depthwise and expand backward, part by part: (images, bare expand result, gradient at a, bare depthwise)."""
        run = self.run_
        assert run.dw is not None
        assert run.expand is not None
        assert run.geometry is not None
        expand, dw = run.expand.done, run.dw.done
        pointwise = is_pointwise(run.expand.spec)
        # Gradients of BatchNorm need the mean of x to be gone from the product with it; see _expand_batch.
        shift = self._input_mean() if pointwise and expand.batch else None
        scaled = run.expand.weight * expand.affine.scale[:, None] if pointwise else None
        dx = run.x.new_empty(matrix(run.x).shape) if pointwise and self.needs.x else None
        pixels = run.height * run.width
        for part, u, da, v in parts:
            self._record("expand", u)
            g = scratch_image("expanded gradient", u, *u.shape)
            needed = self.needs.weights["depthwise"]
            weight, sums = passes.depthwise_gradient(
                da,
                passes.Behind(v, dw.affine, k),
                u,
                run.dw.weight,
                expand.affine,
                expand.center,
                run.geometry,
                needed,
                g,
            )
            self._add(self.sums, "expand", sums)
            if self.needs.weights["depthwise"]:
                self._add(self.products, "depthwise", weight.double())
            if scaled is None:
                count = u.shape[0] * u.shape[2] * u.shape[3]
                plain = expand.affine._replace(lo=-float("inf"), hi=float("inf"))
                full = expand.coefficients(self.sums["expand"], count)
                rows = matrix(g)
                passes.gradient(rows, matrix(u), plain, full, rows)
                self._expand_gradient(image_of(rows, run.n, *run.hidden_size))
                break
            rows, x = matrix(g), matrix(run.x[part])
            self._add_product("expand", rows, x, shift)
            if dx is not None:
                passes.product(rows, scaled, False, dx[part.start * pixels : part.stop * pixels])
        if "depthwise" in self.products:
            self.grads.stages["depthwise"]["weight"] = self.products["depthwise"].to(run.x.dtype)
        if scaled is None:
            return
        if "expand" in self.products:
            self.grads.stages["expand"]["weight"] = self.products["expand"] * expand.affine.scale[:, None]
        if shift is not None:
            self._expand_batch(dx, shift)
        if dx is not None:
            self.grads.x = image_of(dx, run.n, run.height, run.width)

    def _input_mean(self) -> Tensor:
        return passes.moments(matrix(self.run_.x))[0].to(self.run_.x.dtype)

    def _expand_batch(self, dx: Tensor | None, shift: Tensor) -> None:
        """Take off what the statistics of the expand stage take off, from matrices of the input's width only.

        With u - mean = W (x - mean of x), the gradient of u is scale * g - s * (u - mean) - c, so that of the weight
        loses diag(s) W C, C the Gram matrix of the centred input (its columns sum to zero, so c adds nothing), and that
        of the input loses (x - mean of x) W^T diag(s) W and the row c W.
        """
        run = self.run_
        assert run.expand is not None
        norm, weight = run.expand.done, run.expand.weight
        count = run.n * run.hidden_size[0] * run.hidden_size[1]
        sums = self.sums["expand"]
        slope = norm.slope(sums, count).to(weight.dtype)[:, None] * weight
        centred = matrix(run.x) - shift
        if self.needs.weights["expand"]:
            gram = passes.weight_product(centred, centred, None, None)
            self.grads.stages["expand"]["weight"] -= slope @ gram
        if dx is not None:
            row = (norm.scale * (sums[0] / count)).to(weight.dtype) @ weight
            lost = passes.product(centred, weight.t() @ slope, False, scratch("lost", dx, *dx.shape))
            dx.sub_(lost).sub_(row)
