//! Every command does what it says, in words and in JSON.

mod taper;

use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
};
use taper::{Ran, Scratch, Tested, bytes};

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {path} in {value}"))
}

#[test]
fn inspect_counts_every_byte() -> Tested {
    let scratch = Scratch::new()?;
    let text = scratch.run("inspect model")?.done();
    assert!(text.out.contains("model.embed_tokens.weight") && text.out.contains("4096×128"), "{}", text.out);
    assert!(text.out.contains("language model"));
    let json = scratch.run("--json inspect model")?.done().json()?;
    let weights = json["weights"].as_array().ok_or("no weights")?;
    // 4 layers of 9 weights, the embedding and the last norm; two bytes per element.
    assert_eq!(weights.len(), 38);
    let (elements, total) = (number(&json, "/total/elements"), number(&json, "/total/bytes"));
    assert_eq!(total, 2.0 * elements);
    assert_eq!(weights.iter().map(|w| number(w, "/bytes")).sum::<f64>(), total);
    assert_eq!(number(&json, "/total/bits_per_weight"), 16.0);
    Ok(())
}

#[test]
fn compress_writes_what_its_dry_run_said() -> Tested {
    let scratch = Scratch::new()?;
    std::fs::write(
        scratch.at("sparse.toml"),
        "[[pass]]\nname = 'magnitude'\nsparsity = 0.6\n[[pass]]\nname = 'sparse-bitmask'\n",
    )?;
    std::fs::write(
        scratch.at("cut.toml"),
        "[[pass]]\nname = 'structured'\nfamily = 'attention-groups'\nratio = 0.5\n[[pass]]\nname = 'round-nearest'\n",
    )?;
    let ways = [
        "--int8",
        "--int8 --group 64",
        "--int4",
        "--int4 --group 128 --shard-bytes 200K",
        "--nf4 --coverage-floor 1",
        "--nf4 --group 128",
        "--recipe sparse.toml",
        "--recipe cut.toml --shard-bytes 100000",
    ];
    for (i, way) in ways.iter().enumerate() {
        let out = format!("out{i}");
        let predicted = scratch.run(&format!("compress model --dry-run {way} --json"))?.done().json()?;
        assert!(!scratch.at(&out).exists());
        let done = scratch.run(&format!("compress model -o {out} {way} --json"))?.done().json()?;
        assert_eq!(predicted["files"], done["files"], "{way}");
        assert_eq!(predicted["bytes"], done["bytes"], "{way}");
        assert_eq!(predicted["array_bytes"], done["report"]["output"]["bytes"], "{way}");
        let written = bytes(&scratch.at(&out))?;
        assert_eq!(number(&done, "/bytes") as usize, written.values().map(Vec::len).sum::<usize>(), "{way}");
        // The report beside the model is the one that was shown.
        let beside: Value =
            serde_json::from_slice(&std::fs::read(scratch.at(&out).join("taper-report.json"))?)?;
        assert_eq!(beside, done["report"], "{way}");
    }
    let shown = scratch.run("compress model -o shown --int4")?.done().out;
    for part in ["round-nearest (encode)", "int4 g32", "coverage 100.0 %", "taper-report.json", "less damage"]
    {
        assert!(shown.contains(part), "no {part:?} in {shown}");
    }
    let shown = scratch.run("compress model --dry-run --int4")?.done().out;
    assert!(shown.contains("model.safetensors") && shown.contains("nothing written"), "{shown}");
    Ok(())
}

#[test]
fn the_number_of_threads_changes_no_byte() -> Tested {
    let scratch = Scratch::new()?;
    for threads in [1, 2, 7] {
        scratch.run(&format!("--threads {threads} compress model -o out{threads} --int4"))?.done();
    }
    assert!(bytes(&scratch.at("out1"))? == bytes(&scratch.at("out2"))?);
    assert!(bytes(&scratch.at("out1"))? == bytes(&scratch.at("out7"))?);
    Ok(())
}

#[test]
fn eval_judges_a_language_model_and_its_distance_from_the_original() -> Tested {
    let scratch = Scratch::new()?;
    std::fs::write(scratch.at("text.txt"), ::taper::bundled::TEXT)?;
    scratch.run("compress model -o small --int4")?.done();
    let itself =
        scratch.run("eval model --text text.txt --windows 3 --against model --json")?.done().json()?;
    assert_eq!((number(&itself, "/against/mean_kl"), number(&itself, "/against/top1_agreement")), (0.0, 1.0));
    let small =
        scratch.run("eval small --text text.txt --windows 3 --against model --json")?.done().json()?;
    let (before, after) = (number(&itself, "/text/perplexity"), number(&small, "/text/perplexity"));
    assert!(after > 0.98 * before && after < 1.1 * before, "{before} {after}");
    assert!(number(&small, "/against/mean_kl") > 0.0);
    assert_eq!(number(&small, "/text/predictions"), 3.0 * 255.0);
    let text = scratch.run("eval small --text text.txt --window 64 --windows 2")?.done().out;
    assert!(text.contains("perplexity") && text.contains("126 predictions in 2 windows of 64"), "{text}");
    Ok(())
}

#[test]
fn products_are_computed_with_the_numbers_that_are_asked_for_or_that_files_state() -> Tested {
    let scratch = Scratch::new()?;
    std::fs::write(scratch.at("text.txt"), ::taper::bundled::TEXT)?;
    let text = "--calibrate text.txt --window 64 --windows 8";
    for recipe in ["w8a8", "smoothquant-w8a8", "w8a8-dynamic"] {
        scratch.run(&format!("compress model -o as-{recipe} --recipe {recipe} {text}"))?.done();
    }
    let judged = |dir: &str, arithmetic: &str| -> Tested<f64> {
        let command = format!("eval {dir} --text text.txt --windows 2 {arithmetic} --json");
        Ok(number(&scratch.run(&command)?.done().json()?, "/text/perplexity"))
    };
    let original = judged("model", "")?;
    let exact = judged("as-w8a8", "--arithmetic exact")?;
    let (bf16, fixed) = (judged("as-w8a8", "--arithmetic bf16")?, judged("as-w8a8", "")?);
    let (dynamic, smooth) = (judged("as-w8a8-dynamic", "")?, judged("as-smoothquant-w8a8", "")?);
    println!("{original}: {exact}, {bf16}, static {fixed}, dynamic {dynamic}, smooth {smooth}");
    for found in [exact, bf16, fixed, dynamic, smooth] {
        assert!((found / original - 1.0).abs() < 0.02, "{found} {original}");
    }
    assert_eq!(judged("as-w8a8", "--arithmetic int8")?, fixed);
    assert!(fixed != exact && fixed != dynamic && bf16 != exact);
    // The weights are the same: without rounded inputs nothing tells the two apart.
    assert_eq!(judged("as-w8a8-dynamic", "--arithmetic exact")?, exact);
    scratch.run("eval model --text text.txt --arithmetic int4")?.refused(2, &["exact, bf16, int8"]);
    scratch.run("compress model -o out --recipe w8a8")?.refused(2, &["input norms", "--calibrate FILE"]);
    Ok(())
}

#[test]
fn packed_caches_of_keys_and_values_are_judged_and_generated_with() -> Tested {
    let scratch = Scratch::new()?;
    std::fs::write(scratch.at("text.txt"), ::taper::bundled::TEXT)?;
    let judged = |format: &str| -> Tested<Value> {
        scratch.run(&format!("eval model --text text.txt --windows 2 {format} --json"))?.done().json()
    };
    let (plain, full) = (judged("")?, judged("--kv-cache full")?);
    let (int8, int4) = (judged("--kv-cache int8")?, judged("--kv-cache int4")?);
    assert!(plain["text"].get("kv_cache").is_none());
    let of = |json: &Value| number(json, "/text/perplexity");
    let bytes = |json: &Value| number(json, "/text/kv_cache/bytes_per_token");
    // 4 layers, keys and values of 2 heads of 32 numbers.
    assert_eq!(bytes(&full), 4.0 * 2.0 * 64.0 * 4.0);
    assert_eq!((bytes(&int8), bytes(&int4)), (bytes(&full) * 9.0 / 32.0, bytes(&full) * 5.0 / 32.0));
    assert!((of(&full) / of(&plain) - 1.0).abs() < 1e-5);
    assert!((of(&int8) / of(&plain) - 1.0).abs() < 1e-3 && of(&int8) != of(&plain));
    assert!((of(&int4) / of(&plain) - 1.0).abs() < 0.02);
    let said = scratch.run("generate model --prompt Once --max-tokens 5 --kv-cache int4")?.done();
    assert!(said.out.starts_with("Once"), "{}", said.out);
    scratch.run("eval model --text text.txt --kv-cache int3")?.refused(2, &["int3", "full, int8, int4"]);
    Ok(())
}

#[test]
fn eval_says_which_architecture_a_metric_needs() -> Tested {
    let scratch = Scratch::new()?;
    std::fs::write(scratch.at("pairs.tsv"), "5.0\ta cat\ta cat\n0.0\ta cat\ta dog\n")?;
    let needs = ["a language model", "a sentence encoder"];
    let needed = scratch.run("eval model --sts pairs.tsv")?.refused(1, &needs);
    assert!(needed.out.is_empty());
    scratch.run("eval model --features pairs.tsv")?.refused(1, &["a language model", "a classifier"]);
    scratch.run("eval model --text nowhere.txt")?.refused(1, &["nowhere.txt"]);
    std::fs::write(scratch.at("short.txt"), "Too short.")?;
    scratch.run("eval model --text short.txt")?.refused(1, &["less than one window of 256"]);
    Ok(())
}

#[test]
fn diff_puts_the_most_damaged_first_and_lists_what_is_missing() -> Tested {
    let scratch = Scratch::new()?;
    std::fs::write(
        scratch.at("recipe.toml"),
        "[[pass]]\nname = 'drop-layers'\nlayers = [3]\n[[pass]]\nname = 'round-nearest'\nbits = 3\nselect = '*.mlp.*'\n",
    )?;
    scratch.run("compress model -o small --recipe recipe.toml")?.done();
    let json = scratch.run("diff model small --json")?.done().json()?;
    let rows = json["weights"].as_array().ok_or("no weights")?;
    let damages: Vec<f64> = rows.iter().map(|r| number(r, "/normalised_mse")).collect();
    assert!(damages.is_sorted_by(|a, b| a >= b) && damages[0] > 0.01, "{damages:?}");
    assert_eq!(damages.iter().filter(|d| **d > 0.0).count(), 9, "three matrices in each of three layers");
    assert!(
        damages
            .iter()
            .zip(rows)
            .all(|(d, r)| { r["snr_db"].as_f64().is_none_or(|db| (db + 10.0 * d.log10()).abs() < 1e-9) })
    );
    assert_eq!(json["only_in_a"].as_array().map(Vec::len), Some(9), "{}", json["only_in_a"]);
    assert_eq!(json["only_in_b"].as_array().map(Vec::len), Some(0));
    let text = scratch.run("diff model small")?.done().out;
    assert!(
        text.contains("only in model: model.layers.3.mlp.up_proj.weight") && text.contains("SNR dB"),
        "{text}"
    );
    Ok(())
}

#[test]
fn generate_is_repeatable_and_streams() -> Tested {
    let scratch = Scratch::new()?;
    let run = |more: &str| -> Tested<Ran> {
        let mut command = scratch.command("generate model --max-tokens 12");
        command.args(["--prompt", "It was a dark night, and"]).args(more.split_whitespace());
        Ok(Ran::of(command.output()?).done())
    };
    let text = run("--seed 5")?.out;
    assert!(text.starts_with("It was a dark night, and") && text.len() > 40, "{text}");
    assert_eq!(run("--seed 5")?.out, text);
    assert_ne!(run("--seed 6")?.out, text);
    assert_eq!(run("--temperature 0 --seed 1")?.out, run("--temperature 0 --seed 2")?.out);
    let json = run("--seed 5 --json --top-k 50 --top-p 0.9")?.json()?;
    assert_eq!(json["tokens"].as_array().map(Vec::len), Some(12));
    assert_eq!(json["stop"], "limit");
    Ok(())
}

#[test]
fn the_demo_shows_six_ways_and_keeps_them() -> Tested {
    let scratch = Scratch::new()?;
    let json = scratch.run("demo --json --keep kept --svg chart.svg")?.done().json()?;
    let rows = json["rows"].as_array().ok_or("no rows")?;
    assert_eq!(rows.len(), 7);
    let before = number(&rows[0], "/perplexity");
    for row in &rows[1..] {
        let name = row["name"].as_str().ok_or("no name")?;
        let file = scratch.at("kept").join(name).join("model.safetensors").metadata()?.len();
        assert_eq!(number(row, "/file_bytes"), file as f64, "{name}");
        assert_eq!(number(row, "/perplexity_before"), before, "{name}");
        assert!(number(row, "/ratio") > 1.0 && number(row, "/bits_per_weight") <= 16.0, "{row}");
        assert!(number(row, "/tokens_per_second") > 0.0);
    }
    let chart = std::fs::read_to_string(scratch.at("chart.svg"))?;
    assert_eq!(chart.matches("<circle").count(), 7);
    assert!(chart.starts_with("<svg") && chart.trim_end().ends_with("</svg>") && !chart.contains("NaN"));
    Ok(())
}

#[test]
fn a_reader_that_leaves_is_no_error() -> Tested {
    let scratch = Scratch::new()?;
    // More output than a pipe holds, so that writing goes on after the reader has left.
    taper::synthetic(&scratch.at("many"), 1500, 2, 2)?;
    let mut child = scratch.command("inspect many").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::with_capacity(16, child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let status = child.wait()?;
    let mut err = String::new();
    child.stderr.take().ok_or("no errors")?.read_to_string(&mut err)?;
    assert_eq!((status.code(), err.as_str()), (Some(0), ""));
    Ok(())
}
