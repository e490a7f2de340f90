import { createPublicKey, X509Certificate } from 'node:crypto'
import type { Command } from 'commander'
import { MusterError } from '#shared/errors'
import { sha256Hex, spkiDer } from '#shared/pki/keys'
import type { Context } from '../context.ts'
import { formatWhen } from '../duration.ts'
import { readTextFile } from '../json-file.ts'
import { positiveInteger } from '../number.ts'
import { table } from '../table.ts'
import { type Invocation, noun, type Use } from '../verb.ts'

/** As many as one request takes. */
const SLICE = 900
const HASH = /^[0-9a-f]{64}$/i

export function addKeyCommands(program: Command, use: Use): void {
  const key = noun(program, 'key', 'keys that nothing is certified for again')
  key
    .command('compromise')
    .description('put keys on the list; there is no way back')
    .argument(
      '<key>',
      'SHA-256 of a public key (SPKI), or a file: one hash a line, a certificate, or a public key',
    )
    .action(use(compromise))
  key
    .command('list')
    .description('compromised keys, a page at a time')
    .option('--after <hash>', 'the page after this key')
    .option('--limit <n>', 'keys a page', '100')
    .action(use(listKeys))
}

async function compromise(context: Context, { args }: Invocation<object>) {
  const [named = ''] = args
  const keys = [...new Set(HASH.test(named) ? [named.toLowerCase()] : keysIn(readTextFile(named), named))]
  const total = { added: 0, known: 0, devices: new Set<string>() }
  for (let at = 0; at < keys.length; at += SLICE) {
    const { added, known, devices } = await context.plane().compromiseKeys(keys.slice(at, at + SLICE))
    total.added += added
    total.known += known
    for (const device of devices) total.devices.add(device)
  }
  const devices = [...total.devices]
  if (devices.length > 0) {
    const named = devices.length > 10 ? '<device…>' : devices.join(' ')
    context.say(`Their certificates are good until revoked: muster revoke ${named} --reason keyCompromise`)
  }
  return context.answer({ added: total.added, known: total.known, devices }, () => {
    return `${total.added} added, ${total.known} known already; ${devices.length} devices have certificates for them.`
  })
}

/** @throws MusterError invalid_request */
function keysIn(text: string, file: string): string[] {
  if (text.includes('-----BEGIN')) return [keyInPem(text, file)]
  const lines = text
    .split(/\r?\n/)
    .map((line) => line.replace(/#.*/, '').trim())
    .filter((line) => line !== '')
  const wrong = lines.findIndex((line) => !HASH.test(line))
  if (wrong !== -1 || lines.length === 0) {
    const where = wrong === -1 ? 'it names no key' : `entry ${wrong + 1} is no SHA-256 in hex`
    throw new MusterError('invalid_request', `Cannot read the keys in "${file}": ${where}`)
  }
  return lines.map((line) => line.toLowerCase())
}

/** A private key is not asked for: who has one need not show it. @throws MusterError invalid_request */
function keyInPem(pem: string, file: string): string {
  try {
    const isCertificate = pem.includes('BEGIN CERTIFICATE-')
    return sha256Hex(spkiDer(isCertificate ? new X509Certificate(pem).publicKey : createPublicKey(pem)))
  } catch (cause) {
    throw new MusterError(
      'invalid_request',
      `Cannot read "${file}": it is no certificate and no public key`,
      {
        cause,
      },
    )
  }
}

async function listKeys(context: Context, { options }: Invocation<{ after?: string; limit: string }>) {
  const { after } = options
  const page = await context
    .plane()
    .listCompromisedKeys({ ...(after ? { after } : {}), limit: positiveInteger('--limit', options.limit) })
  if (page.next !== null) context.say(`There are more: --after ${page.next}`)
  return context.answer(page, () =>
    table(
      ['KEY', 'FROM', 'SINCE'],
      page.keys.map(({ key, source, createdAt }) => [key, source, formatWhen(createdAt, context.now())]),
    ),
  )
}
