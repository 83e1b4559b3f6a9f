// What the types of a function's parameters are, as numbers: a contract's are checked with it at load.
// No type traits: NVRTC has none without further headers.
template <class T> struct firstdiff_parameter { static constexpr unsigned code = 0; };
template <unsigned N> struct firstdiff_integer { static constexpr unsigned code = N == 4 ? 1 : 2; };
template <> struct firstdiff_parameter<int> : firstdiff_integer<4> {};
template <> struct firstdiff_parameter<unsigned> : firstdiff_integer<4> {};
template <> struct firstdiff_parameter<long> : firstdiff_integer<sizeof(long)> {};
template <> struct firstdiff_parameter<unsigned long> : firstdiff_integer<sizeof(long)> {};
template <> struct firstdiff_parameter<long long> : firstdiff_integer<8> {};
template <> struct firstdiff_parameter<unsigned long long> : firstdiff_integer<8> {};
template <> struct firstdiff_parameter<float> { static constexpr unsigned code = 3; };
template <> struct firstdiff_parameter<double> { static constexpr unsigned code = 4; };
template <class T> struct firstdiff_element { static constexpr unsigned size = sizeof(T); };
template <> struct firstdiff_element<void> { static constexpr unsigned size = 0; };
template <> struct firstdiff_element<const void> { static constexpr unsigned size = 0; };
template <class T> struct firstdiff_pointee {
    static constexpr unsigned code = 10 + firstdiff_element<T>::size;
};
template <class T> struct firstdiff_pointee<const T> {
    static constexpr unsigned code = 110 + firstdiff_element<const T>::size;
};
template <class T> struct firstdiff_parameter<T*> {
    static constexpr unsigned code = firstdiff_pointee<T>::code;
};
template <class T> struct firstdiff_parameters;
template <class... A> struct firstdiff_parameters<void (*)(A...)> {
    static constexpr unsigned count = sizeof...(A);
    __device__ static constexpr unsigned code(unsigned i) {
        const unsigned codes[] = {firstdiff_parameter<A>::code..., 0};
        return i < sizeof...(A) ? codes[i] : 0;
    }
};
