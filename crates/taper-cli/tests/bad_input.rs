//! Damaged, lying and hostile input: status 1, a message that names what is wrong, and nothing written.

mod taper;

use serde_json::{Value, json};
use std::process::Command;
use taper::{Ran, Scratch, Tested, safetensors, synthetic, write_model};

/// Every command that reads the weights of `bad` refuses with these words and leaves nothing.
fn refused_everywhere(scratch: &Scratch, words: &[&str]) -> Tested {
    let before = scratch.names()?;
    for arguments in ["compress bad -o out --int4", "diff bad bad", "diff model bad"] {
        scratch.run(arguments)?.refused(1, words);
    }
    assert_eq!(scratch.names()?, before, "something was left behind");
    Ok(())
}

/// Headers and data that are no checkpoint, refused before any value is read.
fn refused_at_opening(weights: &[u8], words: &[&str]) -> Tested {
    let scratch = Scratch::new()?;
    write_model(&scratch.at("bad"), weights)?;
    scratch.run("inspect bad")?.refused(1, words);
    scratch.run("compress bad --dry-run --int4")?.refused(1, words);
    refused_everywhere(&scratch, words)
}

fn one(dtype: &str, shape: Value, offsets: [u64; 2]) -> Value {
    json!({ "a.weight": { "dtype": dtype, "shape": shape, "data_offsets": offsets } })
}

#[test]
fn truncated_files_are_refused() -> Tested {
    let whole = ::taper::bundled::FILES[1].1;
    for keep in [0, 4, 8, 100, 2_000, whole.len() / 2, whole.len() - 1] {
        refused_at_opening(&whole[..keep], &["model.safetensors", "not a valid safetensors file"])?;
    }
    Ok(())
}

#[test]
fn headers_that_lie_are_refused() -> Tested {
    let file = "not a valid safetensors file";
    let zeros = [0u8; 64];
    for header in [
        one("F32", json!([4, 4]), [0, 32]),
        one("F32", json!([4, 4]), [0, 65]),
        one("F32", json!([4, 4]), [64, 0]),
        one("F32", json!([4, 4]), [8, 72]),
        one("F32", json!([4, 4]), [0, 1 << 62]),
        one("F32", json!([4, 5]), [0, 64]),
        one("F33", json!([4, 4]), [0, 64]),
        one("F32", json!([1u64 << 33, 1u64 << 33]), [0, 64]),
        one("F32", json!([u64::MAX, 2]), [0, 64]),
        one("F32", json!([-4, 4]), [0, 64]),
        json!({"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]},
               "b": {"dtype": "F32", "shape": [8], "data_offsets": [16, 48]}}),
        json!({"a": 3}),
        json!([1, 2]),
    ] {
        refused_at_opening(&safetensors(&header, &zeros), &[file])?;
    }
    let mut long = safetensors(&one("F32", json!([4, 4]), [0, 64]), &zeros);
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refused_at_opening(&long, &[file])?;
    refused_at_opening(&safetensors(&one("F32", json!([4, 4]), [0, 64]), &[0u8; 80]), &[file])
}

#[test]
fn types_that_no_pass_understands_are_named() -> Tested {
    let header = one("I16", json!([4, 4]), [0, 32]);
    refused_at_opening(&safetensors(&header, &[0u8; 32]), &["`a.weight`", "I16", "bf16"])
}

#[test]
fn flipped_bits_never_panic() -> Tested {
    let scratch = Scratch::new()?;
    scratch.run("compress model -o small --nf4")?.done();
    let whole = std::fs::read(scratch.at("small/model.safetensors"))?;
    let header = u64::from_le_bytes(whole[..8].try_into()?) as usize;
    let mut state = 7u64;
    let mut refused = 0;
    for round in 0..60 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut bytes = whole.clone();
        // Mostly in the header, where the facts stand.
        let place = if round % 6 == 5 {
            (state >> 20) as usize % whole.len()
        } else {
            (state >> 20) as usize % (8 + header)
        };
        bytes[place] ^= 1 << (state >> 60 & 7);
        std::fs::write(scratch.at("small/model.safetensors"), bytes)?;
        for command in ["inspect small", "diff model small"] {
            let ran = scratch.run(command)?;
            assert!(matches!(ran.status, Some(0 | 1)), "bit at {place}: {ran:?}");
            if ran.status == Some(1) {
                refused += 1;
                ran.refused(1, &["error: "]);
            }
        }
    }
    assert!(refused > 20, "most flips in a header are noticed: {refused}");
    Ok(())
}

#[test]
fn values_that_are_not_finite_are_refused_and_placed() -> Tested {
    for (value, at) in [(f32::NAN, 5usize), (f32::INFINITY, 0), (f32::NEG_INFINITY, 15)] {
        let scratch = Scratch::new()?;
        let mut data = vec![0u8; 64];
        data[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
        write_model(&scratch.at("bad"), &safetensors(&one("F32", json!([4, 4]), [0, 64]), &data))?;
        let words = ["`a.weight`", "1 values that are not finite", &format!("index {at}")];
        for recipe in [
            "name = 'magnitude'\nsparsity = 0.5",
            "name = 'n-of-m'\nn = 2\nm = 4",
            "name = 'sparse-bitmask'",
            "name = 'round-nearest'\nformat = 'nf4'",
        ] {
            std::fs::write(scratch.at("r.toml"), format!("[[pass]]\n{recipe}\n"))?;
            scratch.run("compress bad -o out --recipe r.toml")?.refused(1, &words);
        }
        scratch.run("diff bad bad")?.refused(1, &words);
        scratch.run("compress bad -o out --int8")?.refused(1, &words);
        assert_eq!(scratch.names()?, ["bad", "model", "r.toml"]);
    }
    Ok(())
}

#[test]
fn a_missing_shard_is_named() -> Tested {
    let scratch = Scratch::new()?;
    scratch.run("compress model -o bad --int8 --shard-bytes 300K")?.done();
    let shard = "model-00002-of-00005.safetensors";
    let there: Vec<_> = std::fs::read_dir(scratch.at("bad"))?.map(|e| e.map(|e| e.file_name())).collect();
    let shard = there
        .iter()
        .flatten()
        .map(|name| name.to_string_lossy().into_owned())
        .find(|name| name.starts_with("model-00002"))
        .unwrap_or(shard.to_owned());
    std::fs::remove_file(scratch.at("bad").join(&shard))?;
    scratch.run("inspect bad")?.refused(1, &[&shard, "missing", "index.json"]);
    refused_everywhere(&scratch, &[&shard, "missing"])
}

#[test]
fn an_index_that_lies_is_refused() -> Tested {
    let scratch = Scratch::new()?;
    synthetic(&scratch.at("bad"), 2, 4, 4)?;
    let index = scratch.at("bad/model.safetensors.index.json");
    for (map, words) in [
        (json!({"blocks.000.weight": "../model/model.safetensors"}), "not a plain file name"),
        (json!({"nothing.weight": "model.safetensors"}), "does not hold it"),
        (json!({"blocks.000.weight": 3}), "not a text"),
    ] {
        std::fs::write(&index, json!({ "weight_map": map }).to_string())?;
        scratch.run("inspect bad")?.refused(1, &["index.json", words]);
    }
    std::fs::write(&index, "{")?;
    scratch.run("inspect bad")?.refused(1, &["index.json"]);
    Ok(())
}

#[test]
fn what_is_no_model_directory_is_told_so() -> Tested {
    let scratch = Scratch::new()?;
    std::fs::create_dir(scratch.at("empty"))?;
    scratch.run("inspect empty")?.refused(1, &["`empty` holds no checkpoint", "config.json"]);
    std::fs::write(scratch.at("empty/config.json"), "{}")?;
    scratch.run("inspect empty")?.refused(1, &["holds no checkpoint", "model.safetensors"]);
    std::fs::write(scratch.at("empty/config.json"), "[]")?;
    scratch.run("inspect empty")?.refused(1, &["config.json", "not an object"]);
    scratch.run("inspect model/config.json")?.refused(1, &["holds no checkpoint"]);
    synthetic(&scratch.at("odd"), 1, 4, 4)?;
    scratch.run("generate odd --prompt x")?.refused(1, &["`made-up`", "llama"]);
    std::fs::write(scratch.at("cut.toml"), "[[pass]]\nname = 'drop-layers'\nleast = 1\n")?;
    scratch.run("compress odd -o out --recipe cut.toml")?.refused(1, &["drop-layers", "`made-up`"]);
    assert!(!scratch.at("out").exists() && !scratch.at("out.partial").exists());
    Ok(())
}

#[test]
fn an_output_that_exists_is_left_alone() -> Tested {
    let scratch = Scratch::new()?;
    std::fs::create_dir(scratch.at("out"))?;
    std::fs::write(scratch.at("out/precious"), "mine")?;
    scratch.run("compress model -o out --int4")?.refused(1, &["`out` exists already"]);
    scratch.run("compress model -o model --int4")?.refused(1, &["`model` exists already"]);
    scratch.run("compress model -o nowhere/out --int4")?.refused(1, &["nowhere"]);
    scratch.run("compress model -o .. --int4")?.refused(1, &[]);
    scratch.run("compress model -o fresh --resume --int4")?.refused(1, &["nothing to resume"]);
    assert_eq!(std::fs::read_to_string(scratch.at("out/precious"))?, "mine");
    assert_eq!(scratch.names()?, ["model", "out"]);
    Ok(())
}

#[test]
fn wrong_recipes_are_told_with_file_and_line() -> Tested {
    let scratch = Scratch::new()?;
    for (recipe, words) in [
        ("[[pass]]\nname = 'round-nearest'\nbit = 4\n", ["r.toml`, line 3", "did you mean `bits`?"]),
        ("[[pass]]\nname = 'round-nearest'\ngroup = 0\n", ["r.toml", "`group` is 0"]),
        ("[[pass]]\nname = 'quantise'\n", ["line 2", "no such pass"]),
        ("", ["r.toml", "has no passes"]),
        ("[[pass]]\nname = 'magnitude'\nsparsity = 0.5\nselect = 'h.*'\n", ["`h.*`", "selects no weight"]),
    ] {
        std::fs::write(scratch.at("r.toml"), recipe)?;
        scratch.run("compress model -o out --recipe r.toml")?.refused(1, &words);
        assert_eq!(scratch.names()?, ["model", "r.toml"]);
    }
    Ok(())
}

/// A small file system of its own, or none where mounting is not permitted.
struct SmallDisk<'a>(&'a std::path::Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a std::path::Path, bytes: usize) -> Option<Self> {
        let options = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "taper"]).arg(at).output();
        mounted.is_ok_and(|o| o.status.success()).then_some(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0).output());
    }
}

#[test]
fn a_full_disk_is_an_error_that_leaves_nothing() -> Tested {
    let scratch = Scratch::new()?;
    let disk = scratch.at("disk");
    std::fs::create_dir(&disk)?;
    let Some(_mounted) = SmallDisk::mount(&disk, 400_000) else {
        eprintln!(
            "SKIPPED: mounting a small tmpfs is not permitted; the limit on file sizes is tested instead"
        );
        return Ok(());
    };
    let words = ["disk/out.partial", "No space left on device"];
    scratch.run("compress model -o disk/out --int4")?.refused(1, &words);
    assert_eq!(std::fs::read_dir(&disk)?.count(), 0, "the disk is as empty as before");
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_grow_is_an_error_that_leaves_nothing() -> Tested {
    let scratch = Scratch::new()?;
    // The shell ignores the signal that a file too large would send, so that writing fails instead.
    let script = "trap '' XFSZ; ulimit -f 300 && exec \"$0\" compress model -o out --int4";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_taper")]).current_dir(scratch.at("."));
    let ran = Ran::of(shell.output()?).refused(1, &["out.partial", "File too large"]);
    assert!(ran.out.is_empty());
    assert_eq!(scratch.names()?, ["model"]);
    Ok(())
}

#[test]
fn what_would_change_nothing_is_an_error_of_the_run_and_of_its_dry_run() -> Tested {
    let scratch = Scratch::new()?;
    scratch.run("compress model -o small --int4")?.done();
    let words = ["no weight was changed", "model.embed_tokens.weight"];
    scratch.run("compress small -o smaller --int4")?.refused(1, &words);
    scratch.run("compress small --dry-run --int4")?.refused(1, &words);
    let recipe = "[[pass]]\nname = 'round-nearest'\nselect = '*.mlp.*'\n";
    std::fs::write(scratch.at("half.toml"), recipe)?;
    let floor = "--recipe half.toml --coverage-floor 0.9";
    let words = ["less than the floor of 90.0 %"];
    scratch.run(&format!("compress model --dry-run {floor}"))?.refused(1, &words);
    scratch.run(&format!("compress model -o out {floor}"))?.refused(1, &words);
    scratch.run("compress model --dry-run -o small --int4")?.refused(1, &["`small` exists already"]);
    assert_eq!(scratch.names()?, ["half.toml", "model", "small"]);
    Ok(())
}

#[test]
fn exclusions_that_match_nothing_and_outputs_inside_the_input_are_refused() -> Tested {
    let scratch = Scratch::new()?;
    std::fs::write(scratch.at("r.toml"), "[[pass]]\nname = 'round-nearest'\nexclude = ['lm_haed.*']\n")?;
    let words = ["`lm_haed.*`", "excludes", "`model.embed_tokens.weight`"];
    scratch.run("compress model -o out --recipe r.toml")?.refused(1, &words);
    scratch.run("compress model --dry-run --recipe r.toml")?.refused(1, &words);
    for out in ["model/small", "model/../model/small"] {
        scratch.run(&format!("compress model -o {out} --int4"))?.refused(2, &["inside the model directory"]);
    }
    assert_eq!(scratch.names()?, ["model", "r.toml"]);
    Ok(())
}

#[test]
fn a_prompt_that_does_not_fit_is_an_error() -> Tested {
    let scratch = Scratch::new()?;
    let prompt = "once upon a time ".repeat(2000);
    let mut command = scratch.command("generate model --max-tokens 3 --prompt");
    Ran::of(command.arg(prompt).output()?).refused(1, &["prompt tokens", "max_position_embeddings"]);
    Ok(())
}
