//! What is wrong with a recipe is told with its line, and with what would be right.

mod bundle;

use bundle::{Bundle, Tested};
use taper::prelude::*;

fn refusal(recipe: &str) -> String {
    match Recipe::parse(recipe) {
        Ok(_) => panic!("accepted:\n{recipe}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_mistake_names_its_place_and_what_would_be_right() {
    let cases: &[(&str, &[&str])] = &[
        ("", &["it has no passes", "`[[pass]]`"]),
        ("coverage-floor = 0.5", &["it has no passes"]),
        ("pass = []", &["it has no passes"]),
        ("[[pass]\nname = 'magnitude'", &["line 1", "not valid TOML"]),
        ("[[pass]]\nname = 'magnitude'\nsparsity = \n", &["line 3", "not valid TOML"]),
        ("[[pass]]\nname = 'n-of-m'\nn = 2\nn = 3", &["line 4", "not valid TOML", "duplicate"]),
        ("[pass]\nname = 'magnitude'", &["line 1", "`pass` is table", "double brackets"]),
        ("pass = [1]", &["line 1", "`pass` is integer", "double brackets"]),
        ("[[passes]]\nname = 'magnitude'", &["line 1", "unknown key `passes`", "did you mean `pass`?"]),
        (
            "coverage_floor = 0.9\n[[pass]]\nname = 'sparse-bitmask'",
            &["line 1", "unknown key `coverage_floor`, did you mean `coverage-floor`?"],
        ),
        (
            "coverage-floor = 90\n[[pass]]\nname = 'sparse-bitmask'",
            &["line 1", "`coverage-floor` is `90`", "from 0 to 1"],
        ),
        ("coverage-floor = 'all'\n[[pass]]\nname = 'magnitude'", &["`coverage-floor` is `'all'`"]),
        ("coverage-floor = nan\n[[pass]]\nname = 'magnitude'", &["`coverage-floor` is `nan`"]),
        ("[[pass]]\nbits = 4", &["line 1, pass 1", "needs a `name`", "`round-nearest`"]),
        ("[[pass]]\nname = 4", &["line 2, pass 1", "`name` is `4`", "`n-of-m`"]),
        (
            "\n\n[[pass]]\nname = 'round-neerest'",
            &["line 4, pass 1 `round-neerest`: no such pass, did you mean `round-nearest`?", "`magnitude`"],
        ),
        ("[[pass]]\nname = 'frobnicate'", &["no such pass; passes are `structured`"]),
        (
            "[[pass]]\nname = 'round-nearest'\nbits = 4\ngruop = 32",
            &[
                "line 4, pass 1 `round-nearest`: unknown key `gruop`, did you mean `group`?",
                "`select`",
                "`bits`",
            ],
        ),
        (
            "[[pass]]\nname = 'sparse-bitmask'\nlevel = 9",
            &["line 3", "unknown key `level`; `sparse-bitmask` takes `name`, `select`, `exclude`"],
        ),
        (
            "[[pass]]\nname = 'round-nearest'\nbits = 'four'",
            &["line 3, pass 1 `round-nearest`", "`bits` is 'four'", "invalid type"],
        ),
        ("[[pass]]\nname = 'round-nearest'\nbits = 9", &["pass 1 `round-nearest`", "2 to 8 bits"]),
        ("[[pass]]\nname = 'round-nearest'\ngroup = 0", &["pass 1 `round-nearest`", "`group` is 0"]),
        ("[[pass]]\nname = 'round-nearest'\ngroup = -32", &["line 3", "`group` is -32"]),
        (
            "[[pass]]\nname = 'round-nearest'\nfit = 'best'",
            &["line 3", "`best`", "`absmax`", "`minmax`", "`search`"],
        ),
        (
            "[[pass]]\nname = 'magnitude'",
            &["line 2", "missing field `sparsity`", "its options are `sparsity`, `scope`"],
        ),
        ("[[pass]]\nname = 'magnitude'\nsparsity = 1.0", &["line 3", "less than 1"]),
        ("[[pass]]\nname = 'magnitude'\nsparsity = 0.5\nscope = 'layer'", &["line 4", "`layer`", "`global`"]),
        ("[[pass]]\nname = 'n-of-m'\nn = 4\nm = 2", &["pass 1 `n-of-m`", "`n-of-m` is 4:2", "less than m"]),
        ("[[pass]]\nname = 'n-of-m'\nn = 2", &["missing field `m`", "its options are `n`, `m`"]),
        (
            "[[pass]]\nname = 'structured'\nfamily = 'heads'\nratio = 0.25",
            &["line 3", "`heads`", "`feed-forward`", "`attention-groups`"],
        ),
        (
            "[[pass]]\nname = 'structured'\nfamily = 'feed-forward'\nratio = 1.5",
            &["line 2, pass 1 `structured`", "`ratio` is 1.5", "less than 1"],
        ),
        (
            "[[pass]]\nname = 'structured'\nfamily = 'feed-forward'\nratio = 0.5\nselect = '*'",
            &["line 5", "takes no `select`", "couplings"],
        ),
        ("[[pass]]\nname = 'drop-layers'", &["pass 1 `drop-layers`", "say which layers, or how many"]),
        (
            "[[pass]]\nname = 'sparse-bitmask'\nselect = 4",
            &["line 3", "`select` is `4`", "a pattern such as"],
        ),
        ("[[pass]]\nname = 'sparse-bitmask'\nselect = []", &["line 3", "`select` is `[]`"]),
        ("[[pass]]\nname = 'sparse-bitmask'\nexclude = ['a', 2]", &["line 3", "`exclude` is `['a', 2]`"]),
        ("[[pass]]\nname = 'sparse-bitmask'\nselect = ''", &["line 3", "is empty", "`*` matches every name"]),
        ("[[pass]]\nname = 'sparse-bitmask'\nselect = 'a.{b'", &["line 3", "`a.{b`", "without its `}`"]),
        ("[[pass]]\nname = 'sparse-bitmask'\nselect = 're:('", &["line 3", "`re:(`"]),
    ];
    for (recipe, expected) in cases {
        let message = refusal(recipe);
        for part in *expected {
            assert!(message.contains(part), "no {part:?} in {message:?} for\n{recipe}");
        }
        // The regex crate draws where a regular expression goes wrong; everything else is one line.
        assert!(recipe.contains("re:") || !message.contains('\n'), "{message:?}");
    }
}

#[test]
fn passes_out_of_order_are_told_with_both_lines() {
    let message =
        refusal("[[pass]]\nname = 'round-nearest'\nbits = 4\n\n[[pass]]\nname = 'n-of-m'\nn = 2\nm = 4\n");
    assert_eq!(
        message,
        "line 6, pass 2 `n-of-m` (value) stands after line 2, pass 1 `round-nearest` (encode); the order is shape, then value, then encode: move it up"
    );
}

#[test]
fn a_selector_that_matches_nothing_is_an_error_that_shows_names() -> Tested {
    let bundle = Bundle::new()?;
    let recipe = Recipe::parse("[[pass]]\nname = 'round-nearest'\nselect = 'transformer.h.*'")?;
    let error = recipe.pipeline().run_to(bundle.open()?, bundle.at("out"), &Run::new()).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("`transformer.h.*`") && message.contains("`model.embed_tokens.weight`"),
        "{message}"
    );
    assert!(!bundle.at("out").exists() && !bundle.at("out.partial").exists());
    Ok(())
}

#[test]
fn a_file_is_named_in_its_errors() -> Tested {
    let bundle = Bundle::new()?;
    let path = bundle.at("wrong.toml");
    let missing = Recipe::open(&path).unwrap_err().to_string();
    assert!(missing.contains("wrong.toml"), "{missing}");
    std::fs::write(&path, "[[pass]]\nname = 'magnitud'\n")?;
    let message = Recipe::open(&path).unwrap_err().to_string();
    assert!(message.contains("wrong.toml`, line 2, pass 1 `magnitud`"), "{message}");
    Ok(())
}

#[test]
fn selections_are_patterns_or_lists_of_them() -> Tested {
    let bundle = Bundle::new()?;
    let recipe = |select: &str| format!("[[pass]]\nname = 'magnitude'\nsparsity = 0.5\n{select}");
    let selected = |select: &str| -> Tested<usize> {
        let (_, report) = Recipe::parse(&recipe(select))?.pipeline().run(bundle.open()?, &Run::new())?;
        Ok(report.passes[0].rows.len())
    };
    // The embedding, and seven matrices in each of four layers.
    assert_eq!(selected("")?, 29);
    assert_eq!(selected("select = 'model.layers.*.mlp.*'")?, 12);
    assert_eq!(selected("select = ['*.q_proj.*', '*.k_proj.*']")?, 8);
    assert_eq!(selected("exclude = ['*embed*', 're:.*layers\\.[01]\\..*']")?, 14);
    Ok(())
}
