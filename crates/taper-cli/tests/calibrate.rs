//! Calibration through the command: a text, saved statistics, shipped recipes, and what is refused.

mod taper;

use taper::{Scratch, Tested, bytes};

const WEIGHTED: &str = "[[pass]]\nname = 'round-nearest'\nbits = 3\ngroup = 64\nweighting = 'input-norms'\n";

fn scratch() -> Tested<Scratch> {
    let scratch = Scratch::new()?;
    std::fs::write(scratch.at("weighted.toml"), WEIGHTED)?;
    std::fs::write(scratch.at("text.txt"), ::taper::bundled::TEXT)?;
    Ok(scratch)
}

#[test]
fn saved_statistics_give_the_bytes_of_fresh_ones_for_any_number_of_threads() -> Tested {
    let scratch = scratch()?;
    let compress = |out: &str, more: &str| {
        scratch.run(&format!("compress model -o {out} --recipe weighted.toml {more}"))
    };
    let text = "--calibrate text.txt --window 64 --windows 8";
    let shown = compress("fresh", text)?.done();
    assert!(shown.out.contains("calibrated once: 29 layers saw 512 tokens each"), "{}", shown.out);
    let fresh = bytes(&scratch.at("fresh"))?;
    compress("kept", &format!("{text} --save-stats s.safetensors"))?.done();
    assert_eq!(bytes(&scratch.at("kept"))?, fresh);
    compress("saved", "--stats s.safetensors --threads 1")?.done();
    assert_eq!(bytes(&scratch.at("saved"))?, fresh);
    compress("one", &format!("{text} --threads 1"))?.done();
    assert_eq!(bytes(&scratch.at("one"))?, fresh);
    compress("sequential", &format!("{text} --calibration sequential"))?.done();
    assert_ne!(bytes(&scratch.at("sequential"))?, fresh);
    scratch.run("compress model -o plain --recipe search-int3-g128")?.done();
    Ok(())
}

#[test]
fn what_is_missing_or_too_short_is_told() -> Tested {
    let scratch = scratch()?;
    let refused = |more: &str, status: i32, words: &[&str]| -> Tested {
        scratch.run(&format!("compress model -o out --recipe {more}"))?.refused(status, words);
        assert!(!scratch.at("out").exists());
        Ok(())
    };
    refused("weighted.toml", 2, &["round-nearest", "needs input norms", "--calibrate FILE"])?;
    refused("weighted.toml --calibrate text.txt --window 4096", 1, &["less than one window"])?;
    refused("weighted.toml --calibrate missing.txt", 1, &["missing.txt"])?;
    refused("weighted.toml --stats text.txt", 1, &["no safetensors file"])?;
    refused("serch-int4-g32", 1, &["did you mean `search-int4-g32`?"])?;
    let listed = scratch.run("recipes")?.done().out;
    assert!(listed.contains("rtn-int2-g64") && listed.contains("found by search"), "{listed}");
    Ok(())
}

#[test]
fn a_plan_is_made_shown_written_and_run() -> Tested {
    let scratch = scratch()?;
    let text = "--calibrate text.txt --window 64 --windows 8";
    let plan = |more: &str| scratch.run(&format!("plan model {text} --judged 2 {more}"));
    let shown = plan("--bits 3.5 --out plan.toml")?.done().out;
    for word in ["one format throughout", "gptq int3 g128", "predicted divergence", "--recipe plan.toml"] {
        assert!(shown.contains(word), "no {word} in {shown}");
    }
    plan("--bits 3.5 --out plan.toml")?.refused(1, &["plan.toml"]);
    plan("--bits 3.5 --out one.toml --threads 1")?.done();
    assert_eq!(std::fs::read(scratch.at("one.toml"))?, std::fs::read(scratch.at("plan.toml"))?);
    let ran =
        scratch.run(&format!("--json compress model -o planned --plan plan.toml {text}"))?.done().json()?;
    let (expected, found) = (&ran["plan"]["expected"], &ran["report"]["output"]["bytes"]);
    assert_eq!(&expected["total-bytes"], found);
    assert!(ran["plan"]["measured"]["divergence"].as_f64() > Some(0.0), "{}", ran["plan"]);
    // The shipped recipe does both at once, with the default number of windows to judge on.
    let short = "--calibrate text.txt --window 64 --windows 8";
    let shown =
        scratch.run(&format!("compress model -o both --recipe budget --bits 4.5 {short}"))?.done().out;
    assert!(shown.contains("bytes of weights as predicted; divergence"), "{shown}");

    plan("--bits 1.5")?.refused(1, &["1.5 bits per weight cannot be kept; the least possible is 2."]);
    plan("--bits 3 --bytes 5M")?.refused(2, &["cannot be used with"]);
    plan("--bits 3 --pin *.0.*=int9")?.refused(2, &["no format is called `int9`", "`gptq int8 channel`"]);
    plan("--bits 3 --windows 4000")?.refused(2, &["cannot be used multiple times"]);
    scratch
        .run("compress model -o out --recipe budget --calibrate text.txt --window 64 --windows 8")?
        .refused(2, &["--bits, --bytes or --divergence"]);
    scratch.run("compress model -o out --recipe budget --bits 3")?.refused(2, &["--calibrate FILE"]);
    scratch.run("compress model -o out --recipe int4 --bits 3")?.refused(2, &["--recipe budget"]);
    Ok(())
}

#[test]
fn a_report_is_shown_drawn_and_measured() -> Tested {
    let scratch = scratch()?;
    let text = "--calibrate text.txt --window 64 --windows 8";
    scratch.run(&format!("compress model -o out --recipe gptq-int4-g32 {text}"))?.done();
    let shown =
        scratch.run("report out --svg chart.svg --text text.txt --against model --windows 4")?.done().out;
    for word in ["output error", "damping", "loss", "against the original: mean KL"] {
        assert!(shown.contains(word), "no {word} in {shown}");
    }
    assert!(std::fs::read_to_string(scratch.at("chart.svg"))?.starts_with("<svg"));
    let json = scratch.run("--json report out/taper-report.json")?.done().json()?;
    let rows = json["passes"][0]["rows"].as_array().ok_or("no rows")?;
    let row = rows.iter().find(|r| r["outcome"] == "done").ok_or("nothing done")?;
    assert!(row["damage"]["output_error"].as_f64().is_some_and(|e| e > 0.0 && e < 0.1), "{row}");
    assert_eq!(row["measures"][0]["name"], "damping");
    scratch.run("report model")?.refused(1, &["taper-report.json"]);
    scratch.run("report out --text text.txt")?.refused(2, &["--against"]);
    Ok(())
}

#[test]
fn rounding_is_learned_by_name_and_a_killed_run_goes_on_to_the_same_bytes() -> Tested {
    let scratch = scratch()?;
    let text = "--calibrate text.txt --window 64 --windows 12";
    let recipe = "[[pass]]\nname = 'tuned'\nbits = 3\ngroup = 32\nsteps = 6\nselect = '*.layers.*'\n";
    std::fs::write(scratch.at("short.toml"), recipe)?;
    let json = scratch.run(&format!("compress model -o named --recipe tuned-int4-g32 {text} --json"))?;
    let json = json.done().json()?;
    // 28 matrices, and 8 norms that stay.
    let pass = &json["report"]["passes"][0];
    assert_eq!((pass["name"].as_str(), pass["rows"].as_array().map(Vec::len)), (Some("tuned"), Some(36)));
    scratch.run(&format!("compress model -o whole --recipe short.toml {text}"))?.done();
    let mut child = scratch.command(&format!("compress model -o out --recipe short.toml {text}")).spawn()?;
    let first = scratch.at("out.partial/calibrated/pass-0/block-0");
    let begun = std::time::Instant::now();
    while !first.exists() && child.try_wait()?.is_none() {
        assert!(begun.elapsed().as_secs() < 120, "it does not get on");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill()?;
    child.wait()?;
    assert!(first.is_dir() && !scratch.at("out").exists(), "it was not stopped in time");
    scratch.run(&format!("compress model -o out --recipe short.toml {text} --resume"))?.done();
    assert_eq!(bytes(&scratch.at("out"))?, bytes(&scratch.at("whole"))?);
    let other = "compress model -o no --recipe tuned-int4-g128";
    scratch.run(other)?.refused(2, &["tuned", "needs calibration batches", "--calibrate FILE"]);
    Ok(())
}
