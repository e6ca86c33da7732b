//! Pruning and quantization compose: what was pruned stays pruned, and nothing else becomes zero by force.

mod bundle;

use bundle::{Bundle, Tested, values};
use taper::prelude::*;

const PRUNE: [(&str, &str); 2] = [
    ("2:4", "[[pass]]\nname = 'n-of-m'\nn = 2\nm = 4\n"),
    ("50 %", "[[pass]]\nname = 'magnitude'\nsparsity = 0.5\n"),
];
const ENCODE: [&str; 4] = [
    "[[pass]]\nname = 'round-nearest'\nbits = 4\ngroup = 32\n",
    "[[pass]]\nname = 'round-nearest'\nbits = 8\n",
    "[[pass]]\nname = 'round-nearest'\nformat = 'nf4'\nblock = 64\n",
    "[[pass]]\nname = 'sparse-bitmask'\n",
];

#[test]
fn pruned_zeros_stay_zero_in_every_encoding() -> Tested {
    let bundle = Bundle::new()?;
    for (how, prune) in PRUNE {
        let (pruned, _) = Recipe::parse(prune)?.pipeline().run(bundle.open()?, &Run::new())?;
        for encode in ENCODE {
            let out = bundle.at("out");
            Recipe::parse(&format!("{prune}{encode}"))?.pipeline().run_to(
                bundle.open()?,
                &out,
                &Run::new(),
            )?;
            let stored = taper::open(&out)?;
            for name in stored.names() {
                let (before, after) = (values(&pruned, &name)?, values(&stored, &name)?);
                let revived = before.iter().zip(&after).filter(|(b, a)| **b == 0.0 && **a != 0.0).count();
                assert_eq!(revived, 0, "{how}, {encode}: {name}");
                if stored.info(&name)?.shape.len() == 2 {
                    let zeros = before.iter().filter(|v| **v == 0.0).count();
                    assert!(2 * zeros >= before.len(), "{how}: {name} has only {zeros} zeros");
                }
            }
            std::fs::remove_dir_all(out)?;
        }
    }
    Ok(())
}

#[test]
fn a_bitmask_loses_nothing_and_counts_every_byte() -> Tested {
    let bundle = Bundle::new()?;
    let recipe = format!("{}{}", PRUNE[1].1, ENCODE[3]);
    let (pruned, _) = Recipe::parse(PRUNE[1].1)?.pipeline().run(bundle.open()?, &Run::new())?;
    let (sparse, _) = Recipe::parse(&recipe)?.pipeline().run(bundle.open()?, &Run::new())?;
    for name in sparse.names() {
        assert_eq!(values(&pruned, &name)?, values(&sparse, &name)?, "{name}");
        let info = sparse.info(&name)?;
        if let [rows, cols] = info.shape[..] {
            let nonzero = values(&pruned, &name)?.iter().filter(|v| **v != 0.0).count();
            // A bit per element, whole bytes per row, and two bytes per value that is there.
            assert_eq!(info.nbytes, rows * cols.div_ceil(8) + 2 * nonzero, "{name}");
        }
    }
    Ok(())
}
