import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Command } from 'commander'
import { MusterError } from '#shared/errors'
import { writeSecretFile } from '#shared/files'
import type { Context } from '../context.ts'
import { formatWhen, parseExpiry } from '../duration.ts'
import { namingOf } from '../naming.ts'
import { positiveInteger } from '../number.ts'
import type { Invocation, Use } from '../verb.ts'
import { readIds } from './token.ts'

interface ClaimOptions {
  readonly uses: string
  readonly expires?: string
  readonly devices?: string
  readonly naming?: string
  readonly approval?: boolean
  readonly out: string
}

export function addClaimCommand(batch: Command, use: Use): void {
  batch
    .command('claim')
    .description('a certificate that the devices of a batch share to enroll with, and its key, made here')
    .argument('<batch>', 'made when it is new')
    .requiredOption('--uses <n>', 'how many devices may enroll with it')
    .option('--expires <when>', 'duration (24h, 30d) or ISO date; a year when it is left out')
    .option('--devices <file>', 'only these ids may enroll: a file with one id a line')
    .option('--naming <how>', 'where a new batch takes ids from: csr, list or assigned')
    .option('--approval', 'an operator approves each device that enrolls with it')
    .option('--out <directory>', 'where <batch>-claim.key and <batch>-claim.crt are written', '.')
    .action(use(createClaim))
}

async function createClaim(context: Context, { args, options }: Invocation<ClaimOptions>) {
  const [batch = ''] = args
  const [keyFile, certificateFile] = ['key', 'crt'].map((end) =>
    join(options.out, `${batch}-claim.${end}`),
  ) as [string, string] // two go in
  for (const path of [keyFile, certificateFile]) {
    if (existsSync(path)) throw new MusterError('conflict', `Cannot write "${path}": it is there already`)
  }
  // Loaded here alone: the X.509 library takes longer to load than every other command takes to run.
  const [{ createCsr }, { generateKey, privateKeyPem }] = await Promise.all([
    import('#shared/pki/x509'),
    import('#shared/pki/keys'),
  ])
  const key = generateKey()
  const csr = await createCsr({ key })
  const { certificate, chain, ...claim } = await context.plane().createClaim({
    batch,
    uses: positiveInteger('--uses', options.uses),
    ...(options.expires ? { expiresAt: parseExpiry(options.expires, context.now()) } : {}),
    ...(options.devices ? { devices: readIds(options.devices) } : {}),
    ...(options.approval ? { approval: true } : {}),
    ...(options.naming ? { naming: namingOf(options.naming) } : {}),
    csr: csr.pem,
  })
  mkdirSync(options.out, { recursive: true })
  writeSecretFile(keyFile, privateKeyPem(key))
  writeSecretFile(certificateFile, [certificate, ...chain.slice(0, 1)].join(''))
  context.say('Whoever has both files is let in as a new device, so often: keep the key as you keep a token.')
  return context.answer({ ...claim, keyFile, certificateFile }, () => {
    const ends = formatWhen(claim.expiresAt, context.now())
    return `Claim ${claim.id} of batch ${claim.batch}: ${keyFile} and ${certificateFile}, ${claim.uses} use(s), expires ${ends}.`
  })
}
