/** Dates of certificates and CRLs: RFC 5280 section 4.1.2.5, whole seconds in UTC. */
import { type DerNode, TAG } from './der.ts'
import { element } from './der-write.ts'

const LAST_DATE = Date.UTC(9999, 11, 31, 23, 59, 59)

/** UTCTime through 2049, GeneralizedTime from 2050 on. `at`: ms since 1970, a whole second. */
export function encodeTime(at: number): Buffer {
  if (!Number.isSafeInteger(at) || at % 1000 !== 0 || at < 0 || at > LAST_DATE) {
    throw new RangeError(`Cannot encode ${at} as a date: not a whole second between 1970 and 9999`)
  }
  const digits = digitsOf(at)
  if (Number(digits.slice(0, 4)) < 2050) return element(TAG.utcTime, Buffer.from(digits.slice(2), 'latin1'))
  return element(TAG.generalizedTime, Buffer.from(digits, 'latin1'))
}

/** GeneralizedTime whatever the year, as OCSP writes its dates (RFC 6960 section 4.2.2.1). `at`: ms since 1970, a whole second. */
export function encodeGeneralizedTime(at: number): Buffer {
  const time = encodeTime(at)
  return time[0] === TAG.generalizedTime
    ? time
    : element(TAG.generalizedTime, Buffer.from(digitsOf(at), 'latin1'))
}

const UTC_TIME = /^(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/
const GENERALIZED_TIME = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/

/** Ms since 1970. No fractions, no offsets, no impossible dates. @throws SyntaxError */
export function readTime(node: DerNode | undefined): number {
  const isUtc = node?.tag === TAG.utcTime
  if (node === undefined || (!isUtc && node.tag !== TAG.generalizedTime)) throw new SyntaxError('no date')
  const match = (isUtc ? UTC_TIME : GENERALIZED_TIME).exec(node.content.toString('latin1'))
  if (match === null) throw new SyntaxError('date form')
  const [year = 0, month = 0, ...rest] = match.slice(1).map(Number)
  const [day = 0, hour = 0, minute = 0, second = 0] = rest
  const century = year < 50 ? 2000 : 1900
  const at = Date.UTC(isUtc ? century + year : year, month - 1, day, hour, minute, second)
  if (!Number.isFinite(at) || !digitsOf(at).endsWith(match[0])) throw new SyntaxError('impossible date')
  return at
}

/** `YYYYMMDDHHMMSSZ`; not what was read if that was 31 February or 25 o'clock, because Date.UTC carries over. */
function digitsOf(at: number): string {
  const iso = new Date(at).toISOString()
  const [month, day] = [iso.slice(5, 7), iso.slice(8, 10)]
  return `${iso.slice(0, 4)}${month}${day}${iso.slice(11, 13)}${iso.slice(14, 16)}${iso.slice(17, 19)}Z`
}
