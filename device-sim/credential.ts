import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import { readSecretFile, syncDirectory, writeFileDurably, writeSecretFile } from '#shared/files'

/** A key and, once it has been issued, its certificate. */
export interface Pair {
  /** Rises by one with every pair of the device. */
  readonly number: number
  readonly directory: string
  readonly key: string
  /** The device's certificate and the issuing CA's, PEM; null while the key waits for an answer. */
  readonly certificate: string | null
}

/** A pair that can be presented. */
export type IssuedPair = Pair & { readonly certificate: string }

const KEY = 'key.pem'
const CERTIFICATE = 'certificate.pem'

/**
 * The keys and certificates of one device on disk: `pairs/<n>/{key,certificate}.pem`, and `current`, a symbolic
 * link that one rename moves from pair to pair. Every method is durable when it returns, and a crash between any
 * two system calls leaves either the state before or a leftover that the next `openCredentials` knows what to do
 * with: a newer key without certificate is asked for again, a newer pair is tried, everything else is removed.
 */
export class Credentials {
  readonly directory: string
  #current: IssuedPair | null
  #candidate: Pair | null

  private constructor(directory: string, found: { current: IssuedPair | null; candidate: Pair | null }) {
    this.directory = directory
    this.#current = found.current
    this.#candidate = found.candidate
  }

  /** Reads what is there, makes the directory when it is new, and removes what no rotation can need any more. */
  static open(directory: string): Credentials {
    mkdirSync(join(directory, 'pairs'), { recursive: true, mode: 0o700 })
    const current = readCurrent(directory)
    const newer = numbersIn(directory).filter((number) => number > (current?.number ?? 0))
    const candidate = newer.map((number) => readPair(directory, number)).findLast((pair) => pair !== null)
    const credentials = new Credentials(directory, { current, candidate: candidate ?? null })
    credentials.tidy()
    return credentials
  }

  /** The pair that a broker has accepted, or the first one that was issued. */
  current(): IssuedPair | null {
    return this.#current
  }

  /** A newer pair that has not been promoted yet: left by a rotation that is under way or was cut. */
  candidate(): Pair | null {
    return this.#candidate
  }

  /**
   * A newer key beside the current pair. The one that an interrupted rotation left is used again, so that asking
   * with it is the same request as before.
   * @param makeKey gives the PEM of a new private key
   */
  begin(makeKey: () => string): Pair {
    if (this.#candidate) return this.#candidate
    const number = Math.max(this.#current?.number ?? 0, ...numbersIn(this.directory), 0) + 1
    const beside = join(this.directory, 'pairs', `${number}.new`)
    rmSync(beside, { recursive: true, force: true })
    mkdirSync(beside, { mode: 0o700 })
    const key = makeKey()
    writeSecretFile(join(beside, KEY), key)
    const directory = pairDirectory(this.directory, number)
    renameSync(beside, directory)
    syncDirectory(join(this.directory, 'pairs'))
    this.#candidate = { number, directory, key, certificate: null }
    return this.#candidate
  }

  /** Puts the issued certificate beside its key. */
  store(certificate: string): IssuedPair {
    const candidate = this.#expectCandidate()
    writeFileDurably(join(candidate.directory, CERTIFICATE), certificate)
    const issued = { ...candidate, certificate }
    this.#candidate = issued
    return issued
  }

  /** Makes the candidate the current pair: one rename. The old pair stays on disk until `tidy`. */
  promote(): IssuedPair {
    const { certificate, ...rest } = this.#expectCandidate()
    if (certificate === null) throw new TypeError('a key without certificate cannot become the current pair')
    const beside = join(this.directory, 'current.new')
    rmSync(beside, { force: true })
    symlinkSync(join('pairs', String(rest.number)), beside)
    renameSync(beside, join(this.directory, 'current'))
    syncDirectory(this.directory)
    this.#current = { ...rest, certificate }
    this.#candidate = null
    return this.#current
  }

  /** Gives the candidate up: the device goes on with the pair it has. */
  discard(): void {
    const { directory } = this.#expectCandidate()
    rmSync(directory, { recursive: true, force: true })
    syncDirectory(join(this.directory, 'pairs'))
    this.#candidate = null
  }

  /** Removes every pair but the current one and the candidate. */
  tidy(): void {
    const kept = new Set([this.#current, this.#candidate].map((pair) => String(pair?.number)))
    const pairs = join(this.directory, 'pairs')
    const leftovers = readdirSync(pairs).filter((name) => !kept.has(name))
    for (const name of leftovers) rmSync(join(pairs, name), { recursive: true, force: true })
    if (leftovers.length > 0) syncDirectory(pairs)
  }

  #expectCandidate(): Pair {
    if (!this.#candidate) throw new TypeError('there is no pair beside the current one')
    return this.#candidate
  }
}

function pairDirectory(directory: string, number: number): string {
  return join(directory, 'pairs', String(number))
}

function numbersIn(directory: string): number[] {
  const names = readdirSync(join(directory, 'pairs')).filter((name) => /^[1-9][0-9]*$/.test(name))
  return names.map(Number).sort((a, b) => a - b)
}

/** Null for a directory without a key: a pair that was being removed when the power went. */
function readPair(directory: string, number: number): Pair | null {
  const pair = pairDirectory(directory, number)
  if (!existsSync(join(pair, KEY))) return null
  const certificate = join(pair, CERTIFICATE)
  return {
    number,
    directory: pair,
    key: readSecretFile(join(pair, KEY)).toString('utf8'),
    certificate: existsSync(certificate) ? readFileSync(certificate, 'utf8') : null,
  }
}

function readCurrent(directory: string): IssuedPair | null {
  const link = join(directory, 'current')
  if (!existsSync(link)) return null
  const pair = readPair(directory, Number(basename(readlinkSync(link))))
  return pair?.certificate ? { ...pair, certificate: pair.certificate } : null
}
