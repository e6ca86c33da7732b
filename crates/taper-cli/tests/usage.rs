//! Wrong usage ends with status 2 and says what would be right; errors are JSON where that was asked for.

mod taper;

use taper::{Scratch, Tested};

#[test]
fn wrong_usage_is_status_two() -> Tested {
    let scratch = Scratch::new()?;
    let cases: &[(&str, &[&str])] = &[
        ("", &["Usage"]),
        ("compres model", &["compres", "compress"]),
        ("inspect", &["<DIR>"]),
        ("compress model -o out", &["--int8", "--recipe"]),
        ("compress model --int4", &["--out"]),
        ("compress model -o out --int4 --int8", &["cannot be used with"]),
        ("compress model -o out --int4 --group 0", &["--group", "at least 1"]),
        ("compress model -o out --int4 --group -4", &["unexpected argument"]),
        ("compress model -o out --int4 --group many", &["--group", "at least 1"]),
        ("compress model -o out --recipe r.toml --group 32", &["cannot be used with"]),
        ("compress model --dry-run --resume --int4", &["cannot be used with"]),
        ("compress model -o out --int4 --coverage-floor 2", &["from 0 to 1"]),
        ("compress model -o out --int4 --shard-bytes 0", &["4000000000"]),
        ("inspect model --threads 0", &["--threads", "1..=1024"]),
        ("inspect model --threads 100000", &["1..=1024"]),
        ("eval model", &["--text", "--sts", "--features"]),
        ("eval model --text t --window 0", &["at least 1"]),
        ("eval model --against model --features f", &["--text"]),
        ("generate model", &["--prompt"]),
        ("generate model --prompt x --temperature hot", &["at least 0"]),
        ("generate model --prompt x --top-p 0", &["above 0"]),
        ("generate model --prompt x --top-k 0", &["at least 1"]),
    ];
    for (arguments, words) in cases {
        let ran = scratch.run(arguments)?.refused(2, words);
        assert!(ran.out.is_empty(), "{arguments}: {}", ran.out);
        let json = scratch.run(&format!("--json {arguments}"))?.refused(2, &[]).json()?;
        let message = json["error"].as_str().ok_or("no error")?;
        assert!(!message.is_empty(), "{arguments}");
    }
    assert_eq!(scratch.names()?, ["model"]);
    Ok(())
}

#[test]
fn help_and_version_are_done() -> Tested {
    let scratch = Scratch::new()?;
    for command in ["", "inspect", "compress", "eval", "diff", "generate", "demo"] {
        let help = scratch.run(&format!("{command} --help"))?.done().out;
        assert!(help.contains("Usage: taper") && help.contains("--json"), "{help}");
    }
    assert!(scratch.run("--version")?.done().out.starts_with("taper "));
    Ok(())
}

#[test]
fn every_command_answers_errors_in_json_too() -> Tested {
    let scratch = Scratch::new()?;
    for arguments in [
        "inspect nowhere",
        "compress nowhere -o out --int4",
        "compress nowhere --dry-run --int4",
        "compress model -o out --recipe nowhere.toml",
        "eval nowhere --text t",
        "diff model nowhere",
        "generate nowhere --prompt x",
        "demo --keep model",
    ] {
        let ran = scratch.run(&format!("{arguments} --json"))?.refused(1, &["error: "]);
        let message = ran.json()?["error"].as_str().ok_or("no error")?.to_owned();
        assert!(ran.err.contains(&message), "{arguments}: {message}");
        let named = if arguments.contains("nowhere") { "nowhere" } else { "model" };
        assert!(message.contains(named), "{arguments}: {message}");
    }
    assert_eq!(scratch.names()?, ["model"]);
    Ok(())
}

#[test]
fn an_unknown_instruction_set_is_wrong_usage() -> Tested {
    let scratch = Scratch::new()?;
    let ran = taper::Ran::of(scratch.command("inspect model").env("TAPER_ISA", "sse9").output()?);
    ran.refused(2, &["`TAPER_ISA` is `sse9`", "`scalar`", "`avx2`", "`avx512`"]);
    taper::Ran::of(scratch.command("inspect model").env("TAPER_ISA", "scalar").output()?).done();
    Ok(())
}
