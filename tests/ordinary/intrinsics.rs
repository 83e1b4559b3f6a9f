//! Intrinsics against plain Rust.

use firstdiff::engine::device::{
    Arg, Device, KernelSource, Launch,
    host::{HostDevice, HostOptions},
};
use half::{bf16, f16};

use super::support::checked;

/// What 32 threads write to `out` by a body that has `int t`, as many values a thread as they do.
fn run<T: bytemuck::Pod>(types: &str, body: &str, n: usize, options: HostOptions) -> Vec<T> {
    let text = format!(
        "#include <cuda_runtime.h>\n#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n#include <cooperative_groups.h>\n\
         #include <cooperative_groups/reduce.h>\n#include <cooperative_groups/scan.h>\nnamespace cg = cooperative_groups;\n\
         __global__ void k({types}* out) {{ int t = threadIdx.x; {body} }}"
    );
    let mut device = HostDevice::new(options).unwrap();
    let source = KernelSource { file: "t.cu".to_string(), text, defines: vec![] };
    device.load(&source).unwrap();
    let out = device.alloc(n * size_of::<T>(), "out").unwrap();
    let launch = Launch { grid: [1; 3], block: [32, 1, 1], shared_bytes: 0 };
    device.launch("k", launch, &[Arg::Buffer(&out, 0)]).unwrap();
    let mut values = vec![T::zeroed(); n];
    device.download(&out, 0, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

fn ints(body: &str) -> Vec<i32> {
    run("int", body, 32, HostOptions::default())
}

#[test]
fn bits_and_integers() {
    let check = |code: &str, wanted: fn(u32) -> u32| {
        let found = ints(&format!("unsigned x = 0x9e3779b9u * (t + 1); out[t] = {code};"));
        let x = |t: u32| 0x9e37_79b9u32.wrapping_mul(t + 1);
        let wanted: Vec<i32> = (0..32).map(|t| wanted(x(t)) as i32).collect();
        assert_eq!(found, wanted, "{code}");
    };
    check("__popc(x)", |x| x.count_ones());
    check("__clz(x)", |x| x.leading_zeros());
    check("__ffs(x)", |x| x.trailing_zeros() + 1);
    check("__brev(x)", |x| x.reverse_bits());
    check("__byte_perm(x, 0x11223344, 0x0123)", |x| x.swap_bytes());
    check("__byte_perm(x, 0x11223344, 0x7654)", |_| 0x1122_3344);
    check("__funnelshift_l(x, x, 5)", |x| x.rotate_left(5));
    check("__umulhi(x, x)", |x| ((u64::from(x) * u64::from(x)) >> 32) as u32);
    check("__dp4a((int)x, 0x01ff0280, 7)", |x| {
        let [a, b, c, d] = x.to_le_bytes().map(|byte| i32::from(byte as i8));
        (-128 * a + 2 * b - c + d + 7) as u32
    });
    check("__dp4a(x, 0x01ff0280u, 7u)", |x| {
        let [a, b, c, d] = x.to_le_bytes().map(u32::from);
        128 * a + 2 * b + 255 * c + d + 7
    });
    check("min(x, 5)", |x| x.min(5));
    check("max((int)x, -5)", |x| (x as i32).max(-5) as u32);
    check("(unsigned)min((size_t)x, (size_t)7)", |x| x.min(7));
}

#[test]
fn floats_become_integers_as_on_the_gpu() {
    let values = "const float x[] = {2.5f, 3.5f, -2.5f, 1e10f, -1e10f, NAN, -0.4f, 7.9f}; float v = x[t % 8];";
    for (code, wanted) in [
        ("__float2int_rn(v)", [2, 4, -2, i32::MAX, i32::MIN, 0, 0, 8]),
        ("__float2int_rz(v)", [2, 3, -2, i32::MAX, i32::MIN, 0, 0, 7]),
        ("__float2int_rd(v)", [2, 3, -3, i32::MAX, i32::MIN, 0, -1, 7]),
        ("__float2int_ru(v)", [3, 4, -2, i32::MAX, i32::MIN, 0, 0, 8]),
        ("(int)__float2uint_rn(v)", [2, 4, 0, -1, 0, 0, 0, 8]),
        ("(int)(100 * __saturatef(v))", [100, 100, 0, 100, 0, 0, 0, 100]),
    ] {
        assert_eq!(ints(&format!("{values} out[t] = {code};"))[..8], wanted, "{code}");
    }
}

#[test]
fn bf16_converts_as_the_half_crate_does() {
    let body = "for (unsigned i = t; i < 65536; i += 32) {\n\
                __nv_bfloat16 b = __ushort_as_bfloat16((unsigned short)i);\n\
                float f = __uint_as_float(i << 16 | 0x7fff + (i & 3));\n\
                out[2 * i] = __float_as_uint(__bfloat162float(b));\n\
                out[2 * i + 1] = __bfloat16_as_ushort(__float2bfloat16(f)); }";
    let found: Vec<u32> = run("unsigned", body, 2 << 16, HostOptions::default());
    for i in 0..1u32 << 16 {
        let [wide, narrow] = [found[2 * i as usize], found[2 * i as usize + 1]];
        assert_eq!(wide, i << 16);
        let float = f32::from_bits(i << 16 | (0x7fff + (i & 3)));
        let narrow = bf16::from_bits(narrow as u16);
        assert!(narrow == bf16::from_f32(float) || narrow.is_nan() && float.is_nan(), "{i:#x}");
    }
}

#[test]
fn half_arithmetic_rounds_once() {
    // A sum that rounds to a tie in f32, and from there the wrong way.
    let body = "half a = __ushort_as_half(0x3c01), b = __ushort_as_half(0x1001 + t), c = __ushort_as_half(0x3c00 + 5 * t);\n\
                out[4 * t] = __half_as_ushort(__hfma(a, b, c)); out[4 * t + 1] = __half_as_ushort(a * b);\n\
                out[4 * t + 2] = __half_as_ushort(hexp(b) - c); out[4 * t + 3] = __half_as_ushort(__hmax(b, c));";
    let found: Vec<u16> = run("unsigned short", body, 128, HostOptions::default());
    for t in 0..32u16 {
        let [a, b, c] =
            [0x3c01, 0x1001 + t, 0x3c00 + 5 * t].map(|bits| f16::from_bits(bits).to_f64());
        let rounded = |x: f64| f16::from_f64(x).to_f64();
        let wanted = [rounded(a * b + c), rounded(a * b), rounded(rounded(b.exp()) - c), b.max(c)];
        let at = 4 * usize::from(t);
        let found: Vec<f64> =
            found[at..at + 4].iter().map(|&bits| f16::from_bits(bits).to_f64()).collect();
        assert_eq!(found, wanted, "{t}");
    }
}

#[test]
fn groups_of_every_kind_know_their_ranks_and_exchange_values() {
    for options in [HostOptions::default(), checked()] {
        let check = |code: &str, wanted: fn(i32) -> i32| {
            let body = format!("auto block = cg::this_thread_block(); {code}");
            let found: Vec<i32> = run("int", &body, 32, options.clone());
            assert_eq!(found, (0..32).map(wanted).collect::<Vec<_>>(), "{code}");
        };
        let tile = "auto tile = cg::tiled_partition<8>(block);";
        check(&format!("{tile} out[t] = tile.shfl(t, 3);"), |t| t / 8 * 8 + 3);
        check(
            &format!("{tile} out[t] = tile.shfl_up(t, 2);"),
            |t| if t % 8 < 2 { t } else { t - 2 },
        );
        check(&format!("{tile} out[t] = tile.shfl_xor(t, 5);"), |t| t ^ 5);
        check(&format!("{tile} out[t] = tile.ballot(t % 8 > 4);"), |_| 0xe0);
        check(&format!("{tile} out[t] = cg::reduce(tile, t, cg::plus<int>());"), |t| {
            28 + t / 8 * 64
        });
        check(
            &format!(
                "{tile} out[t] = cg::reduce(tile, t, [](int a, int b) {{ return a > b ? a : b; }});"
            ),
            |t| t / 8 * 8 + 7,
        );
        check(&format!("{tile} out[t] = cg::inclusive_scan(tile, 1);"), |t| t % 8 + 1);
        check(&format!("{tile} out[t] = cg::exclusive_scan(tile, 2, cg::plus<int>());"), |t| {
            2 * (t % 8)
        });
        check(
            "if (t % 3 == 0) { auto g = cg::coalesced_threads(); out[t] = 100 * g.size() + 10 * g.thread_rank() \
             + g.any(t == 30) + g.shfl(t == 3 ? 5 : 0, 1); } else out[t] = -1;",
            |t| if t % 3 == 0 { 1100 + 10 * (t / 3) + 1 + 5 } else { -1 },
        );
        check(
            "auto warp = cg::tiled_partition<32>(block); auto pair = cg::tiled_partition<2>(warp);\n\
             out[t] = 100 * pair.meta_group_size() + pair.meta_group_rank() + (warp.match_any(t / 16) == (t < 16 ? 0xffffu : 0xffff0000u));",
            |t| 1600 + t / 2 + 1,
        );
    }
}

#[test]
fn a_shuffle_moves_any_type_and_a_shift_from_beyond_the_mask_gives_no_number() {
    let body = "float4 v = make_float4(t, t + 0.5f, -t, 7.0f);\n\
                float4 w = __shfl_xor_sync(0xffffffffu, v, 9);\n\
                half2 h = __shfl_down_sync(0xffffffffu, __floats2half2_rn(t, 2 * t), 4, 16);\n\
                out[t] = w.x + w.y + w.z + w.w + __low2float(h) + __high2float(h);";
    let found: Vec<f32> = run("float", body, 32, HostOptions::default());
    for (t, found) in found.into_iter().enumerate() {
        let (from, below) = ((t ^ 9) as f32, if t % 16 < 12 { t + 4 } else { t } as f32);
        assert_eq!(found, from + 0.5 + 7.0 + 3.0 * below);
    }
    let body = "out[t] = 0; if (t < 8) out[t] = __shfl_down_sync(0xffu, (float)t, 4);";
    for options in [HostOptions::default(), checked()] {
        let found: Vec<f32> = run("float", body, 32, options);
        assert_eq!(found[..4], [4.0, 5.0, 6.0, 7.0]);
        assert!(found[4..8].iter().all(|x| x.is_nan()), "{found:?}");
    }
}
