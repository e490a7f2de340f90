import { existsSync } from 'node:fs'
import { join } from 'node:path'
import type { Command } from 'commander'
import { makeDirectory } from '#shared/directory'
import { MusterError } from '#shared/errors'
import { writeSecretFile } from '#shared/files'
import type { Context } from '../context.ts'
import { formatWhen } from '../duration.ts'
import { type Invocation, noun, type Use } from '../verb.ts'

export function addServiceCommands(program: Command, use: Use): void {
  const service = noun(program, 'service', 'back-end applications: they read telemetry and send commands')
  service
    .command('create')
    .description('a key, made here, and a certificate for it')
    .argument('<id>')
    .option('--out <directory>', 'where <id>.key and <id>.crt are written', '.')
    .action(use(createService))
}

async function createService(context: Context, { args, options }: Invocation<{ out: string }>) {
  const [id = ''] = args
  const [keyFile, certificateFile] = [join(options.out, `${id}.key`), join(options.out, `${id}.crt`)]
  for (const path of [keyFile, certificateFile]) {
    if (existsSync(path)) throw new MusterError('conflict', `Cannot write "${path}": it is there already`)
  }
  makeDirectory(options.out, '--out')
  // Loaded here alone: the X.509 library takes longer to load than every other command takes to run.
  const [{ createCsr }, { generateKey, privateKeyPem }] = await Promise.all([
    import('#shared/pki/x509'),
    import('#shared/pki/keys'),
  ])
  const key = generateKey()
  const csr = await createCsr({ key, commonName: id })
  const reply = await context.plane().createService({ id, csr: csr.pem })
  writeSecretFile(keyFile, privateKeyPem(key))
  writeSecretFile(certificateFile, reply.certificate)
  const document = { service: id, serial: reply.serial, notAfter: reply.notAfter, keyFile, certificateFile }
  return context.answer(document, () => {
    const ends = formatWhen(reply.notAfter, context.now())
    return `Service ${id}: ${keyFile} and ${certificateFile}, good until ${new Date(reply.notAfter).toISOString()} (${ends}).`
  })
}
