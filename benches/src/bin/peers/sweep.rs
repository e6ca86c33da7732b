//! Cost against size: rows, columns, group and tokens, with eight-bit activations.

use crate::{
    job::Spec,
    products::{self, Format, INT8},
    shelf::Shape,
};

const SQUARE: Shape = [4096, 4096];

pub(crate) fn specs() -> Vec<Spec> {
    let shapes = [[256, 256], [1024, 1024], [1024, 4096], [4096, 1024], SQUARE, [11008, 4096], [4096, 11008]];
    let of_shapes = shapes.into_iter().map(|shape| (Format::Int(4, 128), shape));
    let groups = [32, 48, 64, 256, 0].map(|group| (Format::Int(4, group), SQUARE));
    let bits = [2, 3, 5, 6].map(|bits| (Format::Int(bits, 128), SQUARE));
    let all = of_shapes.chain(groups).chain(bits);
    all.flat_map(|(format, shape)| [1, 16, 128].map(|batch| spec(format, shape, batch))).collect()
}

fn spec(format: Format, shape: Shape, batch: usize) -> Spec {
    Spec::new(format!("sweep-{}-{}", format.name(), INT8.0), shape, batch, move |shelf| {
        products::race(shelf, format, INT8, shape, batch)
    })
}
