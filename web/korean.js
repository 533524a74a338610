/** Korean particles: which of two forms follows a word depends on the sound that it ends in. */

/** A syllable, digit or percent sign, perhaps in quotes, and both forms of a particle, as texts have it: "을(를)". */
const BOTH = /([가-힣0-9%])(['’」]?)(?:(은|이|을)\((는|가|를)\)|\(으\)로)/g
/** How the Korean names of the digits 0 to 9 and of the percent sign end: in a vowel, ㄹ or another consonant. */
const [VOWEL, RIEUL, OTHER] = [0, 8, 1]
const ENDS = { 0: OTHER, 1: RIEUL, 2: VOWEL, 3: OTHER, 4: VOWEL, 5: VOWEL, 6: OTHER, 7: RIEUL, 8: RIEUL, 9: VOWEL, "%": VOWEL }
/** Syllables follow each other in Unicode with their 28 final sounds, the first of which is none. */
const [FIRST_SYLLABLE, FINALS] = [0xac00, 28]

/** The text with the form that fits. Behind a Latin letter both stay: nobody knows how it is read. */
export function withParticles(text) {
  return text.replace(BOTH, (_, last, quote, closed, open) => {
    const end = ENDS[last] ?? (last.charCodeAt(0) - FIRST_SYLLABLE) % FINALS
    const form = closed ? (end === VOWEL ? open : closed) : end === VOWEL || end === RIEUL ? "로" : "으로"
    return last + quote + form
  })
}
