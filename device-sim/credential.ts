import { existsSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { mkdir, rm, symlink } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { makeDirectory } from '#shared/directory'
import { readSecretFile } from '#shared/files'
import { renameDurably, syncEntries, writeDurably } from './durable.ts'

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
 * link that one rename moves from pair to pair. Every change is durable when its promise resolves, and a crash between any
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
    makeDirectory(join(directory, 'pairs'))
    const current = readCurrent(directory)
    const newer = numbersIn(directory).filter((number) => number > (current?.number ?? 0))
    const candidate = newer.map((number) => readPair(directory, number)).findLast((pair) => pair !== null)
    const credentials = new Credentials(directory, { current, candidate: candidate ?? null })
    for (const path of credentials.#leftovers()) rmSync(path, { recursive: true, force: true })
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
  async begin(makeKey: () => string): Promise<Pair> {
    if (this.#candidate) return this.#candidate
    const number = Math.max(this.#current?.number ?? 0, ...numbersIn(this.directory), 0) + 1
    const pairs = join(this.directory, 'pairs')
    const beside = join(pairs, `${number}.new`)
    await rm(beside, { recursive: true, force: true })
    await mkdir(beside, { mode: 0o700 })
    const key = makeKey()
    await writeDurably(join(beside, KEY), key, 0o600)
    const directory = pairDirectory(this.directory, number)
    await renameDurably(beside, directory)
    // The directories of a new device are entries, too, that a power cut must not take.
    if (number === 1) await Promise.all([this.directory, dirname(this.directory)].map(syncEntries))
    this.#candidate = { number, directory, key, certificate: null }
    return this.#candidate
  }

  /** Puts the issued certificate beside its key. */
  async store(certificate: string): Promise<void> {
    const candidate = this.#expectCandidate()
    await writeDurably(join(candidate.directory, CERTIFICATE), certificate)
    this.#candidate = { ...candidate, certificate }
  }

  /** Makes the candidate the current pair: one rename. The old pair stays on disk until `tidy`. */
  async promote(): Promise<void> {
    const { certificate, ...rest } = this.#expectCandidate()
    if (certificate === null) throw new TypeError('a key without certificate cannot become the current pair')
    const beside = join(this.directory, 'current.new')
    await rm(beside, { force: true })
    await symlink(join('pairs', String(rest.number)), beside)
    await renameDurably(beside, join(this.directory, 'current'))
    this.#current = { ...rest, certificate }
    this.#candidate = null
  }

  /** Gives the candidate up: the device goes on with the pair it has. */
  async discard(): Promise<void> {
    this.#expectCandidate()
    this.#candidate = null
    await this.tidy()
  }

  /** Removes every pair but the current one and the candidate. */
  async tidy(): Promise<void> {
    const leftovers = this.#leftovers()
    for (const path of leftovers) await rm(path, { recursive: true, force: true })
    if (leftovers.length > 0) await syncEntries(join(this.directory, 'pairs'))
  }

  #leftovers(): string[] {
    const kept = new Set([this.#current, this.#candidate].map((pair) => String(pair?.number)))
    const pairs = join(this.directory, 'pairs')
    return readdirSync(pairs)
      .filter((name) => !kept.has(name))
      .map((name) => join(pairs, name))
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

/** What the device presents: its certificate and the issuing CA's; the root is the verifier's own. */
export function chainOf(reply: { certificate: string; chain: readonly string[] }): string {
  return [reply.certificate, ...reply.chain.slice(0, 1)].map((pem) => `${pem.trim()}\n`).join('')
}
