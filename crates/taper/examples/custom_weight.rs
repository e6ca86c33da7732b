//! A way of storing weights of your own: a packed matrix plus the few columns that packing hurt most, set right again.

use taper::{Parts, bundled, candle, core::verify::damage, prelude::*};

#[derive(Debug)]
struct WithColumns(SharedWeight, candle::Tensor, candle::Tensor); // packed; which columns [r]; what they lack [out, r]

impl Weight for WithColumns {
    fn encoding(&self) -> Encoding {
        Encoding::new("with-columns", format!("{} + {} columns", self.0.encoding(), self.1.elem_count()))
    }
    fn shape(&self) -> &[usize] {
        self.0.shape()
    }
    fn nbytes(&self) -> usize {
        self.0.nbytes() + self.1.nbytes() + self.2.nbytes()
    }
    fn dense(&self) -> taper::Result<candle::Tensor> {
        Ok(self.0.dense()?.index_add(&self.1, &self.2, 1)?)
    }
    fn matmul(&self, x: &candle::Tensor) -> taper::Result<candle::Tensor> {
        let lacking = Weight::matmul(&self.2, &x.index_select(&self.1, x.rank() - 1)?)?;
        Ok((self.0.matmul(x)? + lacking)?)
    }
    fn gather(&self, ids: &candle::Tensor) -> taper::Result<candle::Tensor> {
        Ok(self.0.gather(ids)?.index_add(&self.1, &Weight::gather(&self.2, ids)?, ids.rank())?)
    }
    fn to_parts(&self) -> taper::Result<Parts> {
        let mut parts = Parts { encoding: self.encoding(), ..self.0.to_parts()? };
        for (role, tensor) in [("columns", &self.1), ("lacking", &self.2)] {
            parts.tensors.insert(role.into(), tensor.to_parts()?.part(role, "data")?.clone());
        }
        Ok(parts) // a `Codec` that reads these arrays again would let it be saved
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scratch = tempfile::tempdir()?;
    bundled::write_to(scratch.path())?;
    let original = taper::open(scratch.path())?;
    let (mut small, _) = taper::recipe::int4(128)?.run(original.clone(), &Run::new())?;
    for name in small.names().into_iter().filter(|n| n.contains(".mlp.")) {
        let dense = original.get(&name)?.dense()?.to_dtype(candle::DType::F32)?;
        let packed = small.get(&name)?;
        let error = (&dense - packed.dense()?)?;
        let by_error = error.sqr()?.sum(0)?.arg_sort_last_dim(false)?;
        let worst = by_error.narrow(0, 0, 8)?;
        let better = WithColumns(packed.clone(), worst.clone(), error.index_select(&worst, 1)?);
        let was = damage(&dense, packed.as_ref())?.normalised_mse;
        let is = damage(&dense, &better)?.normalised_mse;
        println!("{name:36} {} nMSE {was:.2e} -> {is:.2e}", better.encoding());
        assert!(is < was);
        small.insert(name, std::sync::Arc::new(better));
    }
    let windows = Windows::of_text(&Tokenizer::of(&original)?, bundled::TEXT, 128)?.first(6);
    let model = taper::build(&small)?.language()?;
    println!("perplexity {:.2}", perplexity(&model, &windows, &Silent)?.perplexity);
    Ok(())
}
