/**
 * What the pairs on disk are worth, seen by a process that did not write them. Run as a program it reads one
 * {@link Inspection} from stdin and writes the {@link PairVerdict}s to stdout; `inspectPairs` runs it like that.
 */
import { spawn } from 'node:child_process'
import { createPrivateKey, X509Certificate } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { json, text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { isMusterError, MusterError } from '#shared/errors'
import { splitPem } from '#shared/pki/pem'
import { systemClock } from './clock.ts'
import { inParallel } from './fleet.ts'
import { openLink } from './mqtt-link.ts'

export interface Inspection {
  /** `mqtts://host:port`. */
  readonly broker: string
  /** PEM of the root. */
  readonly root: string
  readonly devices: readonly {
    readonly id: string
    readonly directory: string
    /** Connect with the pair and say what the broker answers. */
    readonly connect: boolean
  }[]
}

export interface PairVerdict {
  readonly id: string
  /** What is wrong with the pair on disk; null when nothing is. */
  readonly fault: string | null
  /** Of the certificate on disk, lower-case hex of 32 digits; null when there is none that can be read. */
  readonly serial: string | null
  /** Return code of CONNACK; null when the broker was not asked or did not answer. */
  readonly returnCode: number | null
}

/** A fresh process needs no longer than this, even for thousands of connections, ms. */
const INSPECTION_DEADLINE_MS = 120_000
const CONNECT_CONCURRENCY = 16

/** @throws MusterError check_failed when the process does not answer */
export async function inspectPairs(inspection: Inspection): Promise<PairVerdict[]> {
  const child = spawn(process.execPath, [fileURLToPath(import.meta.url)], {
    stdio: ['pipe', 'pipe', 'inherit'],
    timeout: INSPECTION_DEADLINE_MS,
  })
  child.stdin.end(JSON.stringify(inspection))
  const answer = await text(child.stdout)
  try {
    return JSON.parse(answer) as PairVerdict[] // written by `main` below
  } catch (cause) {
    throw new MusterError('check_failed', 'Cannot judge the pairs on disk: the process gave no answer', {
      cause,
    })
  }
}

/** Reads `<directory>/current` and says what is wrong with it at this time. */
export function checkPair(
  directory: string,
  options: { root: string; now: number },
): Omit<PairVerdict, 'id' | 'returnCode'> {
  try {
    const { certificate, issuer, key } = readPair(directory)
    const root = new X509Certificate(options.root)
    const serial = certificate.serialNumber.toLowerCase().padStart(32, '0')
    const checks = {
      'the key does not belong to the certificate': certificate.checkPrivateKey(createPrivateKey(key)),
      'the certificate is not signed by its issuer':
        certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey),
      'the issuer is not signed by the root': issuer.checkIssued(root) && issuer.verify(root.publicKey),
      'the certificate is not valid at this time':
        certificate.validFromDate.getTime() <= options.now &&
        options.now <= certificate.validToDate.getTime(),
    }
    const failed = Object.entries(checks).find(([, holds]) => !holds)
    return { fault: failed?.[0] ?? null, serial }
  } catch (error) {
    return { fault: `the pair cannot be read: ${(error as Error).message}`, serial: null } // fs and crypto throw Errors
  }
}

function readPair(directory: string): { certificate: X509Certificate; issuer: X509Certificate; key: string } {
  const current = join(directory, 'current')
  if (!existsSync(current)) throw new Error('there is none')
  const chain = readFileSync(join(current, 'certificate.pem'), 'utf8')
  const [certificate, issuer] = splitPem(chain).map((pem) => new X509Certificate(pem))
  if (!certificate || !issuer) throw new Error('a certificate is missing')
  return { certificate, issuer, key: readFileSync(join(current, 'key.pem'), 'utf8') }
}

/** 0 when the broker takes the pair. */
async function returnCodeOf(
  id: string,
  options: { directory: string; broker: string; root: string },
): Promise<number | null> {
  const read = (name: string) => readFileSync(join(options.directory, 'current', name), 'utf8')
  try {
    const link = await openLink({
      url: options.broker,
      ca: options.root,
      clientId: id,
      certificate: read('certificate.pem'),
      key: read('key.pem'),
      now: systemClock.now,
    })
    await link.end()
    return 0
  } catch (error) {
    return isMusterError(error, 'forbidden') ? Number(error.evidence.returnCode) : null
  }
}

async function main(): Promise<void> {
  const { broker, root, devices } = (await json(process.stdin)) as Inspection // written by `inspectPairs`
  const verdicts: PairVerdict[] = []
  await inParallel(devices, {
    limit: CONNECT_CONCURRENCY,
    work: async ({ id, directory, connect }) => {
      const pair = checkPair(directory, { root, now: Date.now() })
      const returnCode = connect && pair.serial ? await returnCodeOf(id, { directory, broker, root }) : null
      verdicts.push({ id, ...pair, returnCode })
    },
  })
  process.stdout.write(JSON.stringify(verdicts))
}

if (import.meta.main) await main()
