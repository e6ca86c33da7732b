use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use taper_quant::*;
#[test]
fn speed() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(20);
    let w: Vec<f32> = (0..1 << 22).map(|_| StandardNormal.sample(&mut rng)).collect();
    let imp: Vec<f32> = (0..4096).map(|i| 1.0 + (i % 7) as f32).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let run = |name: &str, f: &(dyn Fn() + Sync)| {
        let mut best = f64::MAX;
        for _ in 0..3 {
            let t = std::time::Instant::now();
            pool.install(|| f());
            best = best.min(t.elapsed().as_secs_f64());
        }
        println!(
            "{name}: {:.3} GB/s, {:.1} ns/w",
            w.len() as f64 * 4.0 / best / 1e9,
            best * 1e9 / w.len() as f64
        );
    };
    let s4 = Scheme::int4(32).unwrap();
    for (n, s) in [
        ("int4 g32", s4),
        ("int4 g128", Scheme::int4(128).unwrap()),
        ("int4 g32 asym", s4.asymmetric()),
        ("int8", Scheme::int8()),
        ("int8 asym", Scheme::int8().asymmetric()),
        ("int3 g64", Scheme::new(Bits::THREE, Granularity::group(64).unwrap())),
        ("int4 tensor", Scheme::new(Bits::FOUR, Granularity::Tensor)),
    ] {
        run(n, &|| {
            PackedInt::encode(&w, &[1024, 4096], &s, &Fit::default(), None, IntLayout::PackQuantized)
                .unwrap();
        });
    }
    run("int4 g32 weighted", &|| {
        PackedInt::encode(&w, &[1024, 4096], &s4, &Fit::default(), Some(&imp), IntLayout::PackQuantized)
            .unwrap();
    });
    run("int4 g32 minmax", &|| {
        PackedInt::encode(&w, &[1024, 4096], &s4, &Fit::MinMax, None, IntLayout::PackQuantized).unwrap();
    });
    run("nf4 search", &|| {
        PackedNf4::encode(
            &w,
            &[1024, 4096],
            Nf4Scheme::new(64).unwrap(),
            &Fit::default(),
            None,
            Default::default(),
        )
        .unwrap();
    });
    run("nf4 absmax", &|| {
        PackedNf4::encode(
            &w,
            &[1024, 4096],
            Nf4Scheme::new(64).unwrap(),
            &Fit::AbsMax,
            None,
            Default::default(),
        )
        .unwrap();
    });
    let p = PackedInt::encode(&w, &[1024, 4096], &s4, &Fit::MinMax, None, IntLayout::PackQuantized).unwrap();
    run("decode int4", &|| {
        taper_core::weight::rows::dense_slice(&p);
    });
    let p =
        PackedInt::encode(&w, &[1024, 4096], &Scheme::int8(), &Fit::MinMax, None, IntLayout::PackQuantized)
            .unwrap();
    run("decode int8", &|| {
        taper_core::weight::rows::dense_slice(&p);
    });
    let p = PackedInt::encode(
        &w,
        &[1024, 4096],
        &Scheme::new(Bits::THREE, Granularity::Channel),
        &Fit::MinMax,
        None,
        IntLayout::PackQuantized,
    )
    .unwrap();
    run("decode int3", &|| {
        taper_core::weight::rows::dense_slice(&p);
    });
    let p = PackedNf4::encode(
        &w,
        &[1024, 4096],
        Nf4Scheme::new(64).unwrap(),
        &Fit::AbsMax,
        None,
        Default::default(),
    )
    .unwrap();
    run("decode nf4", &|| {
        taper_core::weight::rows::dense_slice(&p);
    });
}
